//! Asking an agent, over its unix socket or over TCP: what the command does.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};

/// How long an agent has to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Answers that are no stream have at most this.
const MAX_ANSWER: usize = 256 * 1024 * 1024;

/// Where an agent is asked.
///
/// ```
/// let address: keydispatch_agent::ApiAddress = "unix:/run/dispatch/agent.sock".parse()?;
/// assert_eq!(address.to_string(), "unix:/run/dispatch/agent.sock");
/// # Ok::<(), keydispatch_agent::ClientError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ApiAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl FromStr for ApiAddress {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let wrong = || ClientError::Address {
            text: keydispatch::Escaped(text).to_string(),
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(ApiAddress::Unix(path.trim_start_matches("//").into()));
        }
        if text.starts_with('/') {
            return Ok(ApiAddress::Unix(text.into()));
        }
        let rest = text
            .strip_prefix("http://")
            .unwrap_or(text)
            .trim_end_matches('/');
        let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        if host.is_empty() || port.parse::<u16>().is_err() || rest.contains('/') {
            return Err(wrong());
        }
        Ok(ApiAddress::Tcp(rest.to_owned()))
    }
}

impl std::fmt::Display for ApiAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ApiAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            ApiAddress::Tcp(address) => write!(f, "http://{address}"),
        }
    }
}

/// Why an agent gave no answer. An answer that says no is an [`Answer`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// That is no address of an agent.
    #[error(
        "{text:?} is no address of an agent: write unix:/run/dispatch/agent.sock or http://127.0.0.1:7401"
    )]
    Address {
        /// What it was.
        text: String,
    },
    /// Nobody listens there, or it may not be reached.
    #[error("no agent answers at {address}: {why}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        why: String,
    },
    /// The connection broke, or what came is no answer of an agent. The request may have run.
    #[error("the agent at {address} gave no answer: {why}")]
    Broken {
        /// Where.
        address: String,
        /// Why.
        why: String,
    },
}

/// What an agent answered.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, as JSON where it is that.
    pub body: Value,
    /// The body as it came.
    pub text: String,
}

impl Answer {
    /// True for a status from 200 to 299.
    pub fn is_ok(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Asks one agent. Each request has a connection of its own, but those of [`lookups`](Client::keep).
#[derive(Clone, Debug)]
pub struct Client {
    address: ApiAddress,
    token: Option<String>,
}

impl Client {
    /// Asks the agent at that address, with a token where one is needed.
    pub fn new(address: ApiAddress, token: Option<String>) -> Self {
        Client { address, token }
    }

    /// Where it asks.
    pub fn address(&self) -> &ApiAddress {
        &self.address
    }

    fn broken(&self, why: impl std::fmt::Display) -> ClientError {
        ClientError::Broken {
            address: self.address.to_string(),
            why: keydispatch::Escaped(why).to_string(),
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let connecting = async {
            match &self.address {
                ApiAddress::Unix(path) => {
                    let stream = UnixStream::connect(path).await?;
                    let (sender, connection) = http1::handshake(TokioIo::new(stream))
                        .await
                        .map_err(std::io::Error::other)?;
                    tokio::spawn(connection);
                    Ok(sender)
                }
                ApiAddress::Tcp(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    let (sender, connection) = http1::handshake(TokioIo::new(stream))
                        .await
                        .map_err(std::io::Error::other)?;
                    tokio::spawn(connection);
                    Ok(sender)
                }
            }
        };
        let failed = |why: String| ClientError::Unreachable {
            address: self.address.to_string(),
            why,
        };
        match tokio::time::timeout(CONNECT, connecting).await {
            Ok(Ok(sender)) => Ok(sender),
            Ok(Err(error)) => {
                let error: std::io::Error = error;
                Err(failed(error.to_string()))
            }
            Err(_) => Err(failed(format!("no answer within {} s", CONNECT.as_secs()))),
        }
    }

    /// A connection that stays open for one request after the other.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    pub async fn keep(&self) -> Result<Connection, ClientError> {
        Ok(Connection {
            client: self.clone(),
            sender: self.connect().await?,
        })
    }

    /// Asks once.
    ///
    /// # Errors
    ///
    /// No answer came.
    pub async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ClientError> {
        self.keep().await?.ask(method, path, body).await
    }

    /// Asks for a stream of events.
    ///
    /// # Errors
    ///
    /// No answer came.
    pub async fn follow(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Result<Events, Answer>, ClientError> {
        let mut connection = self.keep().await?;
        let response = connection.send(method, path, body, true).await?;
        if response.status().is_success() {
            return Ok(Ok(Events {
                client: self.clone(),
                body: response.into_body(),
                buffer: Vec::new(),
                _sender: connection.sender,
            }));
        }
        Ok(Err(self.read(response).await?))
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Answer, ClientError> {
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broken(error))?;
            bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if bytes.len() > MAX_ANSWER {
                return Err(self.broken("it does not end"));
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Answer {
            status,
            body: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        })
    }
}

/// See [`Client::keep`].
#[derive(Debug)]
pub struct Connection {
    client: Client,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    ///
    /// No answer came.
    pub async fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ClientError> {
        let response = self.send(method, path, body, false).await?;
        self.client.read(response).await
    }

    async fn send(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        events: bool,
    ) -> Result<Response<Incoming>, ClientError> {
        let method: Method = method.parse().map_err(|error| self.client.broken(error))?;
        let host = match &self.client.address {
            ApiAddress::Unix(_) => "localhost",
            ApiAddress::Tcp(address) => address,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, host);
        if let Some(token) = &self.client.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if events {
            request = request.header(header::ACCEPT, "text/event-stream");
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.client.broken(error))?;
        self.sender
            .send_request(request)
            .await
            .map_err(|error| self.client.broken(error))
    }
}

/// A stream of events.
pub struct Events {
    client: Client,
    body: Incoming,
    buffer: Vec<u8>,
    _sender: SendRequest<Full<Bytes>>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// One event of a stream.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StreamEvent {
    /// What it is called.
    pub name: String,
    /// What a reader that comes back begins after.
    pub id: Option<String>,
    /// What it says.
    pub data: Value,
}

impl Events {
    /// The next event; none at the end of the stream.
    ///
    /// # Errors
    ///
    /// The connection broke.
    pub async fn next(&mut self) -> Result<Option<StreamEvent>, ClientError> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some(event) = StreamEvent::parse(&String::from_utf8_lossy(&block)) {
                    return Ok(Some(event));
                }
                continue;
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self
                    .buffer
                    .extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
                Some(Err(error)) => return Err(self.client.broken(error)),
                None => return Ok(None),
            }
        }
    }
}

impl StreamEvent {
    /// Reads one event from its lines; none for a comment.
    pub fn parse(block: &str) -> Option<StreamEvent> {
        let (mut name, mut id, mut data) = (String::new(), None, None);
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("event", text)) => text.clone_into(&mut name),
                Some(("id", text)) => id = Some(text.to_owned()),
                Some(("data", text)) => data = serde_json::from_str(text).ok(),
                _ => {}
            }
        }
        Some(StreamEvent {
            name,
            id,
            data: data?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_socket_or_a_host_and_a_port() {
        for (text, shown) in [
            ("unix:/run/a.sock", "unix:/run/a.sock"),
            ("/run/a.sock", "unix:/run/a.sock"),
            ("http://127.0.0.1:7401", "http://127.0.0.1:7401"),
            ("http://[::1]:7401/", "http://[::1]:7401"),
            ("localhost:7401", "http://localhost:7401"),
        ] {
            assert_eq!(text.parse::<ApiAddress>().unwrap().to_string(), shown);
        }
        for wrong in [
            "",
            "here",
            "http://host",
            "https://host:1/x",
            "host:x",
            ":1",
        ] {
            assert!(wrong.parse::<ApiAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_event_is_read_and_a_comment_is_none() {
        let event =
            StreamEvent::parse("event: joined\nid: a-1.0\ndata: {\"a\":\"b: c\"}\n\n").unwrap();
        assert_eq!(
            (event.name.as_str(), event.id.as_deref()),
            ("joined", Some("a-1.0"))
        );
        assert_eq!(event.data["a"], "b: c");
        assert_eq!(StreamEvent::parse(": alive\n\n"), None);
    }
}
