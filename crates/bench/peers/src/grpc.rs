//! tonic: unary calls over one HTTP/2 connection, shared by all callers as its documentation advises.

use tokio::net::TcpListener;
use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};
use tonic::{Request, Response, Status};

use crate::{Client, Error};

/// A message of one field of bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Payload {
    #[prost(bytes = "bytes", tag = "1")]
    pub body: bytes::Bytes,
}

#[allow(missing_docs, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/bench.Echoes.rs"));
}

use generated::echoes_client::EchoesClient;
use generated::echoes_server::{Echoes, EchoesServer};

struct Echo;

#[tonic::async_trait]
impl Echoes for Echo {
    async fn echo(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

/// Windows large enough that flow control never stops a caller.
const WINDOW_BYTES: u32 = 16 * 1024 * 1024;

pub(crate) async fn serve() -> Result<String, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(
        Server::builder()
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .add_service(EchoesServer::new(Echo))
            .serve_with_incoming(incoming),
    );
    Ok(address.to_string())
}

pub(crate) async fn connect(address: &str) -> Result<Caller, Error> {
    let channel: Channel = Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect()
        .await?;
    Ok(Caller(EchoesClient::new(channel)))
}

#[derive(Clone)]
pub(crate) struct Caller(EchoesClient<Channel>);

impl Client for Caller {
    async fn call(&mut self, message: &[u8]) -> Result<(), Error> {
        let body = bytes::Bytes::copy_from_slice(message);
        self.0.echo(Request::new(Payload { body })).await?;
        Ok(())
    }
}
