//! One check of an endpoint: connects, asks, and says in a few words what it saw.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header;
use hyper_util::rt::TokioIo;
use keydispatch::Escaped;
use tokio::net::TcpStream;

use super::definition::Probe;
use crate::address::{Network, ServiceAddress, canonical, refuse_checked};

/// Of what a server says, so much is kept for whoever asks how a check went.
const OUTPUT_BYTES: usize = 512;

/// What a check saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) passed: bool,
    /// A few words that stand in the registry: `http 503`.
    pub(crate) brief: String,
    /// What the server said, cut off and escaped.
    pub(crate) output: String,
}

impl Seen {
    pub(crate) fn passed(brief: impl Into<String>) -> Self {
        Seen {
            passed: true,
            brief: brief.into(),
            output: String::new(),
        }
    }

    pub(crate) fn failed(brief: impl Into<String>) -> Self {
        Seen {
            passed: false,
            ..Seen::passed(brief)
        }
    }
}

/// Runs a check once, in no more than `timeout`.
pub(crate) async fn run(probe: &Probe, timeout: Duration, allowed: &[Network]) -> Seen {
    let running = async {
        match probe {
            Probe::Http { target, path } => http(target, path, allowed).await,
            Probe::Tcp { target } => connect(target, allowed)
                .await
                .map(|_| Seen::passed("connected")),
            // The lease's keeper looks at these.
            Probe::Ttl(_) => Ok(Seen::passed("renewed")),
        }
    };
    match tokio::time::timeout(timeout, running).await {
        Ok(Ok(seen)) => seen,
        Ok(Err(why)) => Seen::failed(why),
        Err(_) => Seen::failed(format!("no answer within {} ms", timeout.as_millis())),
    }
}

/// Rule: what was looked up is what is dialled. A name that is looked up again could be another address by then.
async fn connect(target: &ServiceAddress, allowed: &[Network]) -> Result<TcpStream, String> {
    let found = tokio::net::lookup_host((target.host.as_str(), target.port))
        .await
        .map_err(|_| "its name has no address".to_owned())?;
    let mut last = "its name has no address".to_owned();
    for address in found {
        let address = SocketAddr::new(canonical(address.ip()), address.port());
        if let Some(why) = refuse_checked(address.ip(), allowed) {
            last = why;
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                "connection refused".clone_into(&mut last);
            }
            Err(error) => last = format!("not connected: {}", error.kind()),
        }
    }
    Err(last)
}

/// Passes with a status from 200 to 299. A redirect is none of these: where it leads to was not asked about.
async fn http(target: &ServiceAddress, path: &str, allowed: &[Network]) -> Result<Seen, String> {
    let stream = connect(target, allowed).await?;
    let broke = |error: hyper::Error| format!("no HTTP: {}", Escaped(error));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broke)?;
    let asking = async {
        let request = Request::get(path)
            .header(header::HOST, target.authority())
            .header(
                header::USER_AGENT,
                concat!("dispatch/", env!("CARGO_PKG_VERSION")),
            )
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(broke)?;
        let status = response.status();
        let mut body = response.into_body();
        let mut output = Vec::new();
        while output.len() < OUTPUT_BYTES {
            match body.frame().await {
                Some(Ok(frame)) => {
                    output.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data))
                }
                // The status is what counts.
                Some(Err(_)) | None => break,
            }
        }
        output.truncate(OUTPUT_BYTES);
        Ok(Seen {
            passed: status.is_success(),
            brief: format!("http {}", status.as_u16()),
            output: Escaped(String::from_utf8_lossy(&output)).to_string(),
        })
    };
    // The connection is driven beside the question, and goes with it.
    tokio::pin!(connection);
    tokio::pin!(asking);
    let mut open = true;
    loop {
        tokio::select! {
            seen = &mut asking => return seen,
            _ = &mut connection, if open => open = false,
        }
    }
}
