//! HTTP/1.1 on a socket, with bounds on everything that a peer can make it hold.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::problem::{Kind, Problem};

mod body;

pub(crate) use body::{Body, Response};

/// Connections of one listener at once: watchers keep theirs open. Whoever comes then waits in the kernel's queue.
const MAX_CONNECTIONS: usize = 4_096;
/// How long a connection may take to say what it wants, or be idle between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Request line and headers of one request.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// How long answers that are on their way have when the agent stops.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// After an error of the operating system while accepting, mostly that there are no descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is on the other side of a connection, as the kernel says.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    Unix {
        uid: u32,
        gid: u32,
        pid: Option<i32>,
    },
    Tcp(SocketAddr),
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Unix { uid, .. } => write!(f, "uid {uid}"),
            Peer::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, value: &serde_json::Value) -> Response {
    typed(status, "application/json", value.to_string())
}

/// A good JSON answer that is written as it is.
pub(crate) fn serialized(value: &impl serde::Serialize) -> Result<Response, Problem> {
    let text = serde_json::to_string(value)
        .map_err(|error| Problem::new(Kind::Internal, error.to_string()))?;
    Ok(typed(StatusCode::OK, "application/json", text))
}

/// An answer of that media type.
pub(crate) fn typed(
    status: StatusCode,
    media_type: &'static str,
    body: impl Into<Bytes>,
) -> Response {
    let mut response = Response::new(Body::text(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// Reads a body of at most `limit` bytes.
pub(crate) async fn read_body(body: Incoming, limit: usize) -> Result<Bytes, Problem> {
    let too_large = || {
        Problem::new(
            Kind::TooLarge,
            format!("a body of this request has at most {limit} bytes"),
        )
    };
    // What is announced need not come before it is refused.
    if hyper::body::Body::size_hint(&body).lower() > limit as u64 {
        return Err(too_large());
    }
    let reading = async {
        let mut body = body;
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|error| Problem::bad(format!("the body broke off: {error}")))?;
            if let Ok(data) = frame.into_data() {
                if bytes.len() + data.len() > limit {
                    return Err(too_large());
                }
                bytes.extend_from_slice(&data);
            }
        }
        Ok(bytes.freeze())
    };
    tokio::time::timeout(BODY_TIMEOUT, reading)
        .await
        .unwrap_or_else(|_| {
            Err(Problem::new(
                Kind::Timeout,
                format!("the body did not come within {} s", BODY_TIMEOUT.as_secs()),
            ))
        })
}

/// Where an agent listens.
pub(crate) enum Listener {
    /// The path is removed when the listener is dropped.
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
    Tcp(TcpListener, Option<tokio_rustls::TlsAcceptor>),
}

/// The file of a unix socket, which goes with its listener.
pub(crate) struct SocketFile(pub(crate) PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // What is gone already was removed by somebody who cleaned up.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Serves until told to stop, and then until what was asked is answered, or a second has passed.
pub(crate) async fn serve<H, F>(listener: Listener, handler: H, mut stop: watch::Receiver<bool>)
where
    H: Fn(Peer, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            break;
        };
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = stopped(&mut stop) => break,
            accepted = accept(&listener) => accepted,
        };
        let (handler, stop) = (handler.clone(), stop.clone());
        match accepted {
            Ok(Accepted::Unix(stream, peer)) => {
                connections.spawn(async move {
                    converse(stream, peer, handler, stop).await;
                    drop(place);
                });
            }
            Ok(Accepted::Tcp(stream, peer, tls)) => {
                connections.spawn(async move {
                    match tls {
                        None => converse(stream, peer, handler, stop).await,
                        Some(tls) => {
                            let shaking =
                                tokio::time::timeout(BODY_TIMEOUT, tls.accept(stream)).await;
                            match shaking {
                                Ok(Ok(stream)) => converse(stream, peer, handler, stop).await,
                                Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
                                Err(_) => tracing::debug!(%peer, "no TLS in time"),
                            }
                        }
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(LAST_WORDS * 2, async {
        while connections.join_next().await.is_some() {}
    })
    .await;
}

/// Waits until the agent stops.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error says that whoever could say so has gone.
    let _ = stop.wait_for(|stop| *stop).await;
}

enum Accepted {
    Unix(tokio::net::UnixStream, Peer),
    Tcp(
        tokio::net::TcpStream,
        Peer,
        Option<tokio_rustls::TlsAcceptor>,
    ),
}

async fn accept(listener: &Listener) -> std::io::Result<Accepted> {
    match listener {
        Listener::Unix { listener, .. } => {
            let (stream, _) = listener.accept().await?;
            let peer = stream.peer_cred()?;
            let peer = Peer::Unix {
                uid: peer.uid(),
                gid: peer.gid(),
                pid: peer.pid(),
            };
            Ok(Accepted::Unix(stream, peer))
        }
        Listener::Tcp(listener, tls) => {
            let (stream, address) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Accepted::Tcp(stream, Peer::Tcp(address), tls.clone()))
        }
    }
}

async fn converse<S, H, F>(stream: S, peer: Peer, handler: H, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Peer, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let service = service_fn(|request| {
        // Boxed, and gone with the answer: hyper keeps the place of it as long as the connection, and most of those are watchers,
        // which wait for news with nothing being answered.
        let answered = Box::pin(handler(peer.clone(), request));
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = Box::pin(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(LAST_WORDS, connection.as_mut()).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended");
    }
}
