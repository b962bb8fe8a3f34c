//! TCP, with TLS or without.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use keydispatch_core::Escaped;
use keydispatch_core::admission::Credentials;
use keydispatch_core::message::{Address, Frame};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::deadline::done_by;
use crate::log_limit::{LogLimit, LogNow, host};
use crate::tls::{Admitted, PeerError, Role, Standing, TLS_BUFFER_BYTES, Tls, tls_error};
use crate::transport::dialable::objection;
use crate::transport::doorstep::{Doorstep, source};
use crate::transport::framing::Framed;
use crate::transport::metered::{Metered, Received};
use crate::transport::socket::{Move, Socket};
use crate::transport::{
    AcceptError, BindError, BoxFuture, Connection, ConnectionError, DIAL_TIMEOUT, DialError,
    Transport,
};

/// How long a peer that connected may take to prove who it is.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after an error of `accept` that passes, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long what was sent may stay unacknowledged before the kernel resets the connection: many retransmissions, and
/// far less than the quarter of an hour that Linux would wait by itself. Elsewhere the system's own time holds.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the task that accepts has to let go of the listening socket.
const UNBIND_TIMEOUT: Duration = Duration::from_secs(1);
/// After how long without a byte the kernel asks whether the other machine is still there, and how often it asks again. It
/// ends connections that nothing is sent on, and so no timeout of ours or of unacknowledged data would: those of hosts that
/// vanished.
#[cfg(target_os = "linux")]
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(5));

/// Bytes read from a socket at once below TLS, which by itself would read 4 KiB.
const TLS_READ_BYTES: usize = 32 * 1024;

/// Connections that the kernel holds until they are accepted, as far as it allows: what does not fit is tried again by the
/// other side's kernel after one second, then two, then four. The standard library asks for 128, which a cluster that
/// meets again exceeds, and a crowd of strangers all the more.
const BACKLOG: i32 = 4_096;

/// A listening socket, and the way to dial others.
#[derive(Debug)]
pub(crate) struct TcpTransport {
    /// None once the node has stopped listening; shared with whoever accepts.
    listener: crate::mutex::Mutex<Option<Arc<TcpListener>>>,
    unbound: watch::Sender<bool>,
    local: Address,
    tls: Option<Arc<Tls>>,
    /// Connections that were accepted and have yet to prove who they are.
    doorstep: Mutex<Doorstep<Box<dyn Connection>>>,
    log_limit: Arc<LogLimit>,
    /// Whether addresses of 169.254/16 are dialled.
    link_local: bool,
}

impl TcpTransport {
    /// Listens without encryption. Within a tokio runtime, as all of this.
    pub(crate) fn plaintext(bind: &str) -> Result<Self, BindError> {
        TcpTransport::bind(bind, None)
    }

    /// Listens with TLS.
    pub(crate) fn tls(bind: &str, tls: Arc<Tls>) -> Result<Self, BindError> {
        TcpTransport::bind(bind, Some(tls))
    }

    /// Dials addresses of 169.254/16, too.
    pub(crate) fn with_link_local(mut self, allowed: bool) -> Self {
        self.link_local = allowed;
        self
    }

    fn bind(bind: &str, tls: Option<Arc<Tls>>) -> Result<Self, BindError> {
        let listen = || {
            // Resolves names, and reuses an address that closed connections still linger on.
            let listener = std::net::TcpListener::bind(bind)?;
            socket2::SockRef::from(&listener).listen(BACKLOG)?;
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            let local = listener.local_addr()?;
            Ok((listener, local))
        };
        let (listener, local) = listen().map_err(|source: io::Error| {
            let address = bind.to_owned();
            if source.kind() == io::ErrorKind::AddrInUse {
                BindError::Taken { address }
            } else {
                BindError::Unusable { address, source }
            }
        })?;
        Ok(TcpTransport {
            listener: crate::mutex::Mutex::new(Some(Arc::new(listener))),
            unbound: watch::channel(false).0,
            local: Address::try_new(local.to_string())
                .expect("an IP address with a port is short and not empty"),
            tls,
            doorstep: Mutex::new(Doorstep::new()),
            log_limit: Arc::default(),
            link_local: false,
        })
    }

    async fn connect(&self, address: &Address) -> Result<Box<dyn Connection>, DialError> {
        let stream = connect_any(address, self.link_local).await?;
        let opened = Instant::now();
        let unreachable = |source| DialError::Unreachable {
            address: address.clone(),
            source,
        };
        tune(&stream).map_err(unreachable)?;
        let peer = address.to_string();
        let Some(tls) = &self.tls else {
            return Ok(Box::new(TcpConnection::plaintext(stream, peer)));
        };
        let refused = |why: PeerError| DialError::Tls {
            address: address.clone(),
            why: why.to_string(),
        };
        let identity = tls.identity().await;
        let (received, moving) = (Received::default(), Move::default());
        let stream = TlsConnector::from(Arc::clone(&identity.client))
            .connect_with(
                tls.server_name(),
                BufReader::with_capacity(
                    TLS_READ_BYTES,
                    Metered::new(Socket::new(stream, &moving), &received),
                ),
                |session| session.set_buffer_limit(Some(TLS_BUFFER_BYTES)),
            )
            .await
            .map_err(|error| refused(tls.explain(&error)))?;
        let admitted = tls
            .admit(
                &identity,
                stream.get_ref().1.peer_certificates(),
                Role::Server,
            )
            .map_err(refused)?;
        Ok(Box::new(TcpConnection::encrypted(
            stream,
            (received, moving),
            admitted,
            opened,
            peer,
        )))
    }

    fn listener(&self) -> Option<Arc<TcpListener>> {
        self.listener.lock().clone()
    }

    async fn next(&self) -> Result<Box<dyn Connection>, AcceptError> {
        // Held by the one task that accepts.
        let mut doorstep = self.doorstep.lock().await;
        let mut logged = false;
        let mut unbound = self.unbound.subscribe();
        let closed = || AcceptError {
            why: "this node does not listen any more".to_owned(),
        };
        let listener = self.listener().ok_or_else(closed)?;
        loop {
            let accepted = tokio::select! {
                connection = doorstep.greeted() => return Ok(connection),
                accepted = listener.accept() => accepted,
                _ = unbound.wait_for(|unbound| *unbound) => return Err(closed()),
            };
            match accepted {
                Ok((stream, peer)) => {
                    logged = false;
                    // A socket that is gone already says so when it is read.
                    let _ = tune(&stream);
                    let Some(tls) = &self.tls else {
                        return Ok(Box::new(TcpConnection::plaintext(stream, peer.to_string())));
                    };
                    let (tls, log_limit) = (Arc::clone(tls), Arc::clone(&self.log_limit));
                    let received = Received::default();
                    let meter = received.clone();
                    let greeting = async move {
                        match shake_hands(&tls, stream, peer, received).await {
                            Ok(connection) => Some(connection),
                            Err(why) => {
                                log_fault(&log_limit, peer, &why.to_string());
                                None
                            }
                        }
                    };
                    doorstep
                        .admit(Some(source(peer.ip())), meter, greeting)
                        .await;
                }
                Err(error) if is_closed(&error) => {
                    return Err(AcceptError {
                        why: error.to_string(),
                    });
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if !logged {
                        logged = true;
                        tracing::warn!(
                            %error,
                            local = %self.local,
                            "cannot accept connections for now, and keeps trying; the limit of open files may be too low"
                        );
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Transport for TcpTransport {
    fn local_address(&self) -> Address {
        self.local.clone()
    }

    fn dial<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Connection>, DialError>> {
        Box::pin(async move {
            timeout(DIAL_TIMEOUT, self.connect(address))
                .await
                .unwrap_or_else(|_| {
                    Err(DialError::TimedOut {
                        address: address.clone(),
                        waited: DIAL_TIMEOUT,
                    })
                })
        })
    }

    fn unbind(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let listener = self.listener.lock().take();
            self.unbound.send_replace(true);
            // Whoever accepts holds it until its task was polled once more.
            if let Some(listener) = listener {
                let until = Instant::now() + UNBIND_TIMEOUT;
                done_by(until, || Arc::strong_count(&listener) == 1).await;
            }
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, AcceptError>> {
        Box::pin(self.next())
    }
}

/// What all connections have in common.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        let socket = socket2::SockRef::from(stream);
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(KEEPALIVE.0)
            .with_interval(KEEPALIVE.1);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    Ok(())
}

/// Tries every address that the name stands for, none of them for so long that the others have no time.
async fn connect_any(address: &Address, link_local: bool) -> Result<TcpStream, DialError> {
    let unreachable = |source| DialError::Unreachable {
        address: address.clone(),
        source,
    };
    let mut candidates: Vec<SocketAddr> = tokio::net::lookup_host(address.as_str())
        .await
        .map_err(unreachable)?
        .collect();
    let forbidden = candidates
        .iter()
        .find_map(|candidate| objection(candidate.ip(), link_local));
    candidates.retain(|candidate| objection(candidate.ip(), link_local).is_none());
    if let (true, Some(why)) = (candidates.is_empty(), forbidden) {
        let address = address.clone();
        return Err(DialError::Forbidden { address, why });
    }
    let share = DIAL_TIMEOUT / u32::try_from(candidates.len().max(1)).unwrap_or(u32::MAX);
    let mut failure = None;
    for candidate in candidates {
        match timeout(share, TcpStream::connect(candidate)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                // A refusal by one of several says nothing of the others.
                failure.get_or_insert_with(|| DialError::Refused {
                    address: address.clone(),
                });
            }
            Ok(Err(error)) => failure = Some(unreachable(error)),
            Err(_) => {
                failure = Some(DialError::TimedOut {
                    address: address.clone(),
                    waited: share,
                });
            }
        }
    }
    Err(failure.unwrap_or_else(|| {
        unreachable(io::Error::new(
            io::ErrorKind::NotFound,
            "the name has no addresses",
        ))
    }))
}

/// The accepting side's handshake; the error is about the peer.
async fn shake_hands(
    tls: &Arc<Tls>,
    stream: TcpStream,
    peer: SocketAddr,
    received: Received,
) -> Result<Box<dyn Connection>, PeerError> {
    let opened = Instant::now();
    let identity = tls.identity().await;
    let moving = Move::default();
    let handshake = TlsAcceptor::from(Arc::clone(&identity.server)).accept_with(
        BufReader::with_capacity(
            TLS_READ_BYTES,
            Metered::new(Socket::new(stream, &moving), &received),
        ),
        |session| session.set_buffer_limit(Some(TLS_BUFFER_BYTES)),
    );
    let stream = timeout(HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| PeerError::TooSlow)?
        .map_err(|error| tls.explain(&error))?;
    let certificates = stream.get_ref().1.peer_certificates();
    let admitted = tls.admit(&identity, certificates, Role::Client)?;
    let peer = peer.to_string();
    Ok(Box::new(TcpConnection::encrypted(
        stream,
        (received, moving),
        admitted,
        opened,
        peer,
    )))
}

fn log_fault(log_limit: &LogLimit, peer: SocketAddr, why: &str) {
    if let Some(LogNow { suppressed }) = log_limit.should_log(&host(&peer.to_string()), why) {
        tracing::warn!(%peer, suppressed, "refusing a connection: {}", Escaped(why));
    } else {
        tracing::debug!(%peer, why = %Escaped(why), "refusing a connection");
    }
}

/// The listening socket itself is of no more use.
fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}

/// The connection died before it was accepted; there will be others.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

struct TcpConnection<S> {
    framed: Framed<S>,
    received: Received,
    moving: Move,
    credentials: Credentials,
    /// None without encryption.
    standing: Option<Standing>,
    opened: Instant,
    peer: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TcpConnection<S> {
    fn encrypted(
        stream: S,
        (received, moving): (Received, Move),
        admitted: Admitted,
        opened: Instant,
        peer: String,
    ) -> Self {
        TcpConnection {
            framed: Framed::new(stream),
            received,
            moving,
            credentials: admitted.credentials,
            standing: Some(admitted.standing),
            opened,
            peer,
        }
    }

    /// Rule: a connection ends with the trust in the certificate that it was made with. It is asked before anything is read
    /// or written, and once more where the task of the connection is going to wait, which this wakes.
    fn poll_withdrawn(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionError> {
        match &mut self.standing {
            Some(standing) => standing
                .poll_withdrawn(cx)
                .map(|why| ConnectionError::Withdrawn { why }),
            None => Poll::Pending,
        }
    }

    fn is_withdrawn(&self) -> bool {
        let standing = self.standing.as_ref();
        standing.is_some_and(Standing::is_withdrawn)
    }
}

impl TcpConnection<Metered<Socket>> {
    fn plaintext(stream: TcpStream, peer: String) -> Self {
        let (received, moving) = (Received::default(), Move::default());
        TcpConnection {
            framed: Framed::plaintext(Metered::new(Socket::new(stream, &moving), &received)),
            received,
            moving,
            credentials: Credentials::Unchecked,
            standing: None,
            opened: Instant::now(),
            peer,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Connection for TcpConnection<S> {
    fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    fn peer(&self) -> &str {
        &self.peer
    }

    fn opened(&self) -> Instant {
        self.opened
    }

    fn outdated(&self) -> BoxFuture<'static, ()> {
        match &self.standing {
            Some(standing) => {
                let renewal = standing.renewal();
                Box::pin(async move { renewal.notified().await })
            }
            None => Box::pin(std::future::pending()),
        }
    }

    fn set_frame_limit(&mut self, bytes: usize) {
        self.framed.set_frame_limit(bytes);
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, ConnectionError>>> {
        if self.is_withdrawn()
            && let Poll::Ready(error) = self.poll_withdrawn(cx)
        {
            return Poll::Ready(Some(Err(error)));
        }
        match self.framed.poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(frame.map(|frame| frame.map_err(name_refusal))),
            Poll::Pending => self.poll_withdrawn(cx).map(|error| Some(Err(error))),
        }
    }

    fn meter(&self) -> &Received {
        &self.received
    }

    fn move_here(&mut self) {
        self.moving.ask();
    }

    fn send_with(&mut self, frame: Frame, rest: Bytes) {
        self.framed.send(frame, rest);
    }

    fn buffered(&self) -> usize {
        self.framed.buffered()
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        if self.is_withdrawn()
            && let Poll::Ready(error) = self.poll_withdrawn(cx)
        {
            return Poll::Ready(Err(error));
        }
        match self.framed.poll_flush(cx) {
            Poll::Ready(flushed) => {
                Poll::Ready(flushed.map_err(|error| name_refusal(error.into())))
            }
            Poll::Pending => self.poll_withdrawn(cx).map(Err),
        }
    }
}

/// In TLS 1.3 the dialling side hears only after its handshake that its certificate was refused.
fn name_refusal(error: ConnectionError) -> ConnectionError {
    if let ConnectionError::Io(inner) = &error
        && let Some(rustls::Error::AlertReceived(alert)) = tls_error(inner)
    {
        return ConnectionError::RefusedByPeer {
            why: format!("{alert:?}"),
        };
    }
    error
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_gives_up_on_a_connection_whose_other_side_has_vanished() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (dialled, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        for stream in [dialled.unwrap(), accepted.unwrap().0] {
            tune(&stream).unwrap();
            let set = socket2::SockRef::from(&stream).tcp_user_timeout().unwrap();
            assert_eq!(set, Some(USER_TIMEOUT));
            assert!(stream.nodelay().unwrap());
            let socket = socket2::SockRef::from(&stream);
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE.0);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE.1);
        }
    }
}
