//! Frames over a stream of bytes: a length of four bytes (little endian, counting kind and body), a kind, a body.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use keydispatch_core::message::{DecodeError, Frame};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::transport::{ConnectionError, STRANGER_FRAME_BYTES};

/// Length prefix of a frame.
const LENGTH_BYTES: usize = 4;

/// What comes before a body: the length and the kind.
const HEAD_BYTES: usize = LENGTH_BYTES + 1;

/// Room for one read of a connection that has sent little: an idle one should cost little.
const MIN_READ_BYTES: usize = 4 * 1024;

/// Room for one read of a busy connection: hundreds of small frames per system call.
const MAX_READ_BYTES: usize = 64 * 1024;

/// A body above this that has yet to arrive is read into memory of its own, without another copy of it.
const LARGE_BODY_BYTES: usize = 16 * 1024;

/// A large body up to this has its memory at once; room for a longer one follows what has arrived of it.
const WHOLE_BODY_BYTES: usize = 1024 * 1024;

/// A body above this is written from where it is; copying shorter ones is cheaper than another slice to write.
const COPY_BYTES: usize = 8 * 1024;

/// A buffer of copied frames is closed at this length and another begun.
const COALESCE_BYTES: usize = 64 * 1024;

/// Slices per vectored write.
const MAX_SLICES: usize = 32;

/// Frames over a stream.
#[derive(Debug)]
pub(crate) struct Framed<S> {
    stream: S,
    reader: FrameReader,
    writer: Writer,
}

#[derive(Debug)]
struct FrameReader {
    buffer: BytesMut,
    /// A large body, of which some has arrived; the buffer is empty meanwhile.
    arriving: Option<Arriving>,
    limit: usize,
    /// Room for the next read; grows where reads fill it.
    room: usize,
    /// The stream has no encryption of its own, so that TLS on it is a mistake worth naming.
    plaintext: bool,
    /// No frame was read yet.
    first: bool,
    finished: bool,
}

#[derive(Debug)]
struct Arriving {
    kind: u8,
    body: BytesMut,
    /// Of the whole body.
    length: usize,
}

#[derive(Debug, Default)]
struct Writer {
    /// Written before `tail`.
    chunks: VecDeque<Bytes>,
    /// Small frames, copied one after the other.
    tail: BytesMut,
    /// Bytes in `chunks` and `tail`.
    queued: usize,
    /// Something was written since the stream was last flushed.
    unflushed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Framed<S> {
    /// Frames over a stream whose bytes are protected, or never leave the process.
    pub(crate) fn new(stream: S) -> Self {
        Framed {
            stream,
            reader: FrameReader {
                buffer: BytesMut::new(),
                arriving: None,
                limit: STRANGER_FRAME_BYTES,
                room: MIN_READ_BYTES,
                plaintext: false,
                first: true,
                finished: false,
            },
            writer: Writer::default(),
        }
    }

    /// Frames over a network without encryption: a peer that speaks TLS is recognised.
    pub(crate) fn plaintext(stream: S) -> Self {
        let mut framed = Framed::new(stream);
        framed.reader.plaintext = true;
        framed
    }

    pub(crate) fn set_frame_limit(&mut self, bytes: usize) {
        self.reader.limit = bytes;
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, ConnectionError>>> {
        if self.reader.finished {
            return Poll::Ready(None);
        }
        let outcome = loop {
            match self.reader.parse() {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) => {}
                Err(error) => break Some(Err(error)),
            }
            match ready!(self.reader.poll_fill(&mut self.stream, cx)) {
                Ok(0) => match self.reader.incomplete() {
                    0 => break None,
                    bytes => break Some(Err(ConnectionError::Truncated { bytes })),
                },
                Ok(_) => {}
                Err(error) => break Some(Err(error.into())),
            }
        };
        self.reader.finished = true;
        Poll::Ready(outcome)
    }

    /// Queues a frame whose body goes on with `rest`.
    pub(crate) fn send(&mut self, frame: Frame, rest: Bytes) {
        self.writer.push(frame, rest);
    }

    /// Bytes that are not on their way; at least one as long as a flush is needed.
    pub(crate) fn buffered(&self) -> usize {
        self.writer.queued.max(usize::from(self.writer.unflushed))
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.writer.queued > 0 {
            let written = ready!(self.writer.poll_write(&mut self.stream, cx))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.writer.unflushed = true;
            self.writer.advance(written);
        }
        if self.writer.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.writer.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl FrameReader {
    /// The next frame, if all of it has arrived.
    fn parse(&mut self) -> Result<Option<Frame>, ConnectionError> {
        if let Some(arriving) = self.arriving.take() {
            if arriving.is_whole() {
                return Ok(Some(arriving.into_frame()));
            }
            self.arriving = Some(arriving);
            return Ok(None);
        }
        let Some(&prefix) = self.buffer.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        if self.first && self.plaintext && looks_like_tls(prefix) {
            return Err(ConnectionError::SpeaksTls);
        }
        let bytes = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
        if bytes > self.limit {
            return Err(DecodeError::FrameTooLong {
                bytes,
                limit: self.limit,
            }
            .into());
        }
        if bytes == 0 {
            return Err(DecodeError::Garbled {
                kind: 0,
                cause: "its length is zero".to_owned(),
            }
            .into());
        }
        let whole = self.buffer.len() >= LENGTH_BYTES + bytes;
        if !whole && (bytes - 1 <= LARGE_BODY_BYTES || self.buffer.len() < HEAD_BYTES) {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_BYTES);
        let kind = self.buffer.get_u8();
        self.first = false;
        if !whole {
            self.arriving = Some(Arriving::new(kind, bytes - 1, &self.buffer));
            self.buffer.clear();
            return Ok(None);
        }
        let body = self.buffer.split_to(bytes - 1).freeze();
        Ok(Some(Frame { kind, body }))
    }

    /// Bytes of a frame that has yet to arrive as a whole.
    fn incomplete(&self) -> usize {
        let arriving = self.arriving.as_ref();
        self.buffer.len() + arriving.map_or(0, |arriving| HEAD_BYTES + arriving.body.len())
    }

    /// Reads what is there; zero is the end.
    fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let outcome = match &mut self.arriving {
            Some(arriving) => {
                let room = arriving.reserve();
                let mut body = (&mut arriving.body).limit(room);
                ready!(pin!(stream.read_buf(&mut body)).poll(cx))
            }
            None => {
                // Room follows what has arrived, never what a length promises.
                self.buffer.reserve(self.room);
                let room = self.buffer.capacity() - self.buffer.len();
                let outcome = ready!(pin!(stream.read_buf(&mut self.buffer)).poll(cx));
                if outcome.as_ref().is_ok_and(|bytes| *bytes == room) {
                    self.room = (self.room * 4).min(MAX_READ_BYTES);
                }
                outcome
            }
        };
        match outcome {
            // A TLS peer that ended without a farewell: every frame that arrived is authentic all the same, and an end
            // inside a frame is found out by the frame's length.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(0)),
            outcome => Poll::Ready(outcome),
        }
    }
}

impl Arriving {
    fn new(kind: u8, length: usize, start: &[u8]) -> Self {
        let room = if length <= WHOLE_BODY_BYTES {
            length
        } else {
            MAX_READ_BYTES.max(start.len())
        };
        let mut body = BytesMut::with_capacity(room);
        body.extend_from_slice(start);
        Arriving { kind, body, length }
    }

    fn is_whole(&self) -> bool {
        self.body.len() == self.length
    }

    fn into_frame(self) -> Frame {
        Frame {
            kind: self.kind,
            body: self.body.freeze(),
        }
    }

    /// Room for what comes next: at least a byte, at most the rest of the body.
    fn reserve(&mut self) -> usize {
        let (arrived, missing) = (self.body.len(), self.length - self.body.len());
        if self.body.capacity() == arrived {
            self.body.reserve(missing.min(arrived));
        }
        missing.min(self.body.capacity() - arrived)
    }
}

impl Writer {
    fn push(&mut self, frame: Frame, rest: Bytes) {
        let bytes = 1 + frame.body.len() + rest.len();
        let prefix = u32::try_from(bytes).expect("bodies are limited far below 4 GiB when encoded");
        self.queued += LENGTH_BYTES + bytes;
        self.tail.put_u32_le(prefix);
        self.tail.put_u8(frame.kind);
        self.append(frame.body);
        self.append(rest);
    }

    fn append(&mut self, bytes: Bytes) {
        if bytes.len() <= COPY_BYTES {
            self.tail.extend_from_slice(&bytes);
            if self.tail.len() >= COALESCE_BYTES {
                self.chunks.push_back(self.tail.split().freeze());
            }
        } else {
            self.chunks.push_back(self.tail.split().freeze());
            self.chunks.push_back(bytes);
        }
    }

    fn poll_write<S: AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.chunks.is_empty() {
            return Pin::new(stream).poll_write(cx, &self.tail);
        }
        if !stream.is_write_vectored() {
            return Pin::new(stream).poll_write(cx, &self.chunks[0]);
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut used = 0;
        for chunk in self.chunks.iter().take(MAX_SLICES) {
            slices[used] = IoSlice::new(chunk);
            used += 1;
        }
        if used < MAX_SLICES && !self.tail.is_empty() {
            slices[used] = IoSlice::new(&self.tail);
            used += 1;
        }
        Pin::new(stream).poll_write_vectored(cx, &slices[..used])
    }

    fn advance(&mut self, written: usize) {
        self.queued -= written;
        let mut left = written;
        while let Some(chunk) = self.chunks.front_mut() {
            if left < chunk.len() {
                chunk.advance(left);
                return;
            }
            left -= chunk.len();
            self.chunks.pop_front();
        }
        self.tail.advance(left);
    }
}

/// A handshake or an alert of TLS. As a length it would be over 64 KiB, longer than any first frame.
fn looks_like_tls(prefix: [u8; LENGTH_BYTES]) -> bool {
    matches!(prefix, [0x15 | 0x16, 0x03, 0x01..=0x04, _])
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use keydispatch_core::limits::MAX_CONTROL_FRAME_BYTES;
    use proptest::prelude::*;
    use tokio::io::{AsyncWriteExt, DuplexStream, ReadBuf};

    use super::*;

    fn frame(kind: u8, body: impl Into<Bytes>) -> Frame {
        let body = body.into();
        Frame { kind, body }
    }

    async fn next<S: AsyncRead + AsyncWrite + Unpin>(
        framed: &mut Framed<S>,
    ) -> Option<Result<Frame, ConnectionError>> {
        poll_fn(|cx| framed.poll_frame(cx)).await
    }

    /// What frames, sent as these bytes and followed by the end, are read as.
    async fn read(bytes: &[u8]) -> (Vec<Frame>, Option<ConnectionError>) {
        let (mut near, far) = tokio::io::duplex(bytes.len().max(1));
        near.write_all(bytes).await.unwrap();
        drop(near);
        let mut framed = Framed::plaintext(far);
        let mut frames = Vec::new();
        loop {
            match next(&mut framed).await {
                Some(Ok(frame)) => frames.push(frame),
                Some(Err(error)) => {
                    assert!(next(&mut framed).await.is_none());
                    return (frames, Some(error));
                }
                None => return (frames, None),
            }
        }
    }

    #[tokio::test]
    async fn an_end_between_frames_is_clean_and_an_end_inside_one_is_not() {
        let whole = [3, 0, 0, 0, 7, 1, 2];
        let (frames, error) = read(&whole).await;
        assert_eq!(frames, [frame(7, vec![1, 2])]);
        assert!(error.is_none(), "{error:?}");
        for end in 1..whole.len() {
            let (frames, error) = read(&whole[..end]).await;
            assert!(frames.is_empty());
            assert!(
                matches!(error, Some(ConnectionError::Truncated { bytes }) if bytes == end),
                "{error:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_length_of_zero_is_garbled() {
        let (_, error) = read(&[1, 0, 0, 0, 9, 0, 0, 0, 0]).await;
        assert!(
            matches!(
                error,
                Some(ConnectionError::Decode(DecodeError::Garbled { .. }))
            ),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn a_length_over_the_limit_is_refused_before_the_body_arrives() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut framed = Framed::new(far);
        near.write_all(&[0, 0, 0, 0x7f]).await.unwrap();
        let error = next(&mut framed).await.unwrap().unwrap_err();
        assert!(
            matches!(
                error,
                ConnectionError::Decode(DecodeError::FrameTooLong {
                    bytes: 0x7f00_0000,
                    limit: STRANGER_FRAME_BYTES
                })
            ),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn a_promised_length_allocates_nothing() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut framed = Framed::new(far);
        framed.set_frame_limit(1 << 30);
        near.write_all(&[0, 0, 0, 0x20, 1, 2]).await.unwrap();
        let pending = poll_fn(|cx| Poll::Ready(framed.poll_frame(cx).is_pending())).await;
        assert!(pending);
        let arriving = framed.reader.arriving.as_ref().unwrap();
        let room = framed.reader.buffer.capacity() + arriving.body.capacity();
        assert!(room <= 2 * MAX_READ_BYTES);
    }

    #[tokio::test]
    async fn a_huge_body_never_has_more_than_twice_the_room_that_it_has_filled() {
        const BYTES: usize = 5 * WHOLE_BODY_BYTES + 3;
        let (mut near, far) = tokio::io::duplex(1 << 14);
        let mut framed = Framed::new(far);
        framed.set_frame_limit(1 << 30);
        let sent = async {
            near.write_all(&u32::try_from(BYTES + 1).unwrap().to_le_bytes())
                .await
                .unwrap();
            near.write_all(&[9]).await.unwrap();
            near.write_all(&vec![5; BYTES]).await.unwrap();
        };
        let read = poll_fn(|cx| {
            let polled = framed.poll_frame(cx);
            if let Some(arriving) = &framed.reader.arriving {
                let (room, filled) = (arriving.body.capacity(), arriving.body.len());
                assert!(
                    room <= (2 * filled).max(2 * MAX_READ_BYTES),
                    "{room} for {filled}"
                );
            }
            polled
        });
        let (frame_read, ()) = tokio::join!(read, sent);
        assert_eq!(frame_read.unwrap().unwrap(), frame(9, vec![5; BYTES]));
    }

    #[tokio::test]
    async fn a_client_hello_is_recognised_where_there_is_no_encryption() {
        let (_, error) = read(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await;
        assert!(
            matches!(error, Some(ConnectionError::SpeaksTls)),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn what_is_buffered_is_counted_until_it_is_flushed() {
        let (near, far) = tokio::io::duplex(16);
        let mut writer = Framed::new(near);
        writer.send(frame(1, vec![0; 100]), Bytes::new());
        assert_eq!(writer.buffered(), 105);
        let pending = poll_fn(|cx| Poll::Ready(writer.poll_flush(cx).is_pending())).await;
        assert!(pending);
        assert_eq!(writer.buffered(), 105 - 16);
        let mut reader = Framed::new(far);
        let flush = poll_fn(|cx| writer.poll_flush(cx));
        let (flushed, read) = tokio::join!(flush, next(&mut reader));
        flushed.unwrap();
        assert_eq!(read.unwrap().unwrap(), frame(1, vec![0; 100]));
        assert_eq!(writer.buffered(), 0);
    }

    /// Reads and writes at most so many bytes at once.
    struct Cut {
        stream: DuplexStream,
        sizes: Vec<usize>,
        turn: usize,
        vectored: bool,
    }

    impl Cut {
        fn size(&mut self) -> usize {
            self.turn += 1;
            self.sizes[self.turn % self.sizes.len()]
        }
    }

    impl AsyncRead for Cut {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let size = self.size().min(buffer.remaining());
            let mut short = vec![0; size];
            let mut inner = ReadBuf::new(&mut short);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut inner))?;
            buffer.put_slice(inner.filled());
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Cut {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let size = self.size().min(bytes.len());
            Pin::new(&mut self.stream).poll_write(cx, &bytes[..size])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
            let size = self.size().min(all.len());
            Pin::new(&mut self.stream).poll_write(cx, &all[..size])
        }

        fn is_write_vectored(&self) -> bool {
            self.vectored
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }

    fn bodies() -> impl Strategy<Value = Vec<(u8, usize)>> {
        let length = prop_oneof![
            8 => 0..200_usize,
            2 => COPY_BYTES - 2..COPY_BYTES + 3,
            1 => 20_000..400_000_usize,
        ];
        prop::collection::vec((any::<u8>(), length), 0..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn frames_come_out_the_same_however_the_bytes_are_cut(
            bodies in bodies(),
            reads in prop::collection::vec(1..70_000_usize, 1..5),
            writes in prop::collection::vec(1..70_000_usize, 1..5),
            vectored: bool,
        ) {
            let frames: Vec<Frame> = bodies
                .iter()
                .enumerate()
                .map(|(turn, &(kind, length))| frame(kind, vec![turn as u8; length]))
                .collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let received = runtime.block_on(async {
                let (near, far) = tokio::io::duplex(50_000);
                let mut writer = Framed::new(Cut { stream: near, sizes: writes, turn: 0, vectored });
                let mut reader = Framed::new(Cut { stream: far, sizes: reads, turn: 0, vectored });
                reader.set_frame_limit(MAX_CONTROL_FRAME_BYTES);
                for (turn, frame) in frames.iter().enumerate() {
                    // Some bodies in two parts.
                    let mut first = frame.clone();
                    let rest = first.body.split_off(first.body.len() / (1 + turn % 3));
                    writer.send(first, rest);
                    if turn % 7 == 3 {
                        // A flush that may stop in the middle.
                        let _ = poll_fn(|cx| Poll::Ready(writer.poll_flush(cx).is_ready())).await;
                    }
                }
                let write = async move {
                    poll_fn(|cx| writer.poll_flush(cx)).await.unwrap();
                    assert_eq!(writer.buffered(), 0);
                };
                let read = async {
                    let mut received = Vec::new();
                    while let Some(frame) = next(&mut reader).await {
                        received.push(frame.unwrap());
                    }
                    received
                };
                tokio::join!(write, read).1
            });
            prop_assert_eq!(received, frames);
        }
    }
}
