//! A TCP socket that moves from one runtime to another, and that is read and written where its runtime is held, below
//! everything that is made of it.

use std::cell::Cell;
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

thread_local! {
    static UNATTENDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs something for which no runtime looks at the sockets that it polls: each is tried, however it was found the last time.
pub(crate) fn unattended<T>(run: impl FnOnce() -> T) -> T {
    struct Reset(bool);
    impl Drop for Reset {
        fn drop(&mut self) {
            UNATTENDED.set(self.0);
        }
    }
    let _reset = Reset(UNATTENDED.replace(true));
    run()
}

/// What a runtime that is not held would have found out by itself.
fn tried<T>(
    polled: Poll<io::Result<T>>,
    stream: &TcpStream,
    attempt: impl FnOnce(&socket2::Socket) -> io::Result<T>,
) -> Poll<io::Result<T>> {
    if polled.is_ready() || !UNATTENDED.get() {
        return polled;
    }
    match attempt(&SockRef::from(stream)) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Poll::Pending,
        done => Poll::Ready(done),
    }
}

/// Lets a socket move to the runtime on which it is polled next.
#[derive(Clone, Debug, Default)]
pub(crate) struct Move(Arc<AtomicBool>);

impl Move {
    pub(crate) fn ask(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Socket {
    /// None where moving failed.
    stream: Option<TcpStream>,
    asked: Move,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, asked: &Move) -> Self {
        Socket {
            stream: Some(stream),
            asked: asked.clone(),
        }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        if self.asked.0.load(Ordering::Acquire) && self.asked.0.swap(false, Ordering::AcqRel) {
            let moved = self.stream.take().map(|stream| {
                let stream = stream.into_std()?;
                TcpStream::from_std(stream)
            });
            self.stream = moved.transpose()?;
        }
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Pin::new(stream))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut stream = self.stream()?;
        let polled = stream.as_mut().poll_read(cx, buffer);
        tried(polled, &stream, |mut socket| {
            let bytes = socket.read(buffer.initialize_unfilled())?;
            buffer.advance(bytes);
            Ok(())
        })
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut stream = self.stream()?;
        let polled = stream.as_mut().poll_write(cx, bytes);
        tried(polled, &stream, |mut socket| socket.write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut stream = self.stream()?;
        let polled = stream.as_mut().poll_write_vectored(cx, slices);
        tried(polled, &stream, |mut socket| socket.write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream
            .as_ref()
            .is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::runtime::Runtime;

    use super::*;

    #[test]
    fn a_socket_that_moved_outlives_the_runtime_that_it_was_made_on() {
        let (first, second) = (Runtime::new().unwrap(), Runtime::new().unwrap());
        let asked = Move::default();
        let (mut socket, mut far) = first.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
            (Socket::new(near.unwrap(), &asked), far.unwrap().0)
        });
        first.block_on(far.write_all(b"one")).unwrap();
        asked.ask();
        let mut bytes = [0; 3];
        second.block_on(socket.read_exact(&mut bytes)).unwrap();
        assert_eq!(&bytes, b"one");
        let far = far.into_std().unwrap();
        first.shutdown_background();
        let mut far = second.block_on(async { TcpStream::from_std(far).unwrap() });
        second.block_on(async {
            socket.write_all(b"two").await.unwrap();
            far.read_exact(&mut bytes).await.unwrap();
        });
        assert_eq!(&bytes, b"two");
    }
}
