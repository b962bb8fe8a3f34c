//! ractor_cluster: a call to a remote actor, found by its process group.

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::{NodeServer, RactorClusterMessage};

use crate::{Client, Error};

const GROUP: &str = "echo";
const COOKIE: &str = "bench";

#[derive(RactorClusterMessage)]
enum Message {
    #[rpc]
    Echo(Vec<u8>, RpcReplyPort<Vec<u8>>),
}

struct Echo;

impl Actor for Echo {
    type Msg = Message;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, myself: ActorRef<Message>, _: ()) -> Result<(), ActorProcessingErr> {
        ractor::pg::join(GROUP.to_owned(), vec![myself.get_cell()]);
        Ok(())
    }

    async fn handle(&self, _: ActorRef<Message>, message: Message, _: &mut ()) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Echo(bytes, reply) => reply.send(bytes)?,
        }
        Ok(())
    }
}

async fn node(port: u16, name: &str) -> Result<ActorRef<ractor_cluster::NodeServerMessage>, Error> {
    let server = NodeServer::new(port, COOKIE.to_owned(), name.to_owned(), "localhost".to_owned(), None, None);
    Ok(Actor::spawn(None, server, ()).await?.0)
}

pub(crate) async fn serve() -> Result<String, Error> {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("[::]:0")?.local_addr()?.port();
    node(port, "far").await?;
    Actor::spawn(None, Echo, ()).await?;
    Ok(format!("127.0.0.1:{port}"))
}

pub(crate) async fn connect(address: &str) -> Result<Caller, Error> {
    let node = node(0, "near").await?;
    ractor_cluster::client_connect(&node, address).await?;
    for _ in 0..500 {
        if let Some(cell) = ractor::pg::get_members(&GROUP.to_owned()).pop() {
            return Ok(Caller(cell.into()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err("the remote actor did not show".into())
}

#[derive(Clone)]
pub(crate) struct Caller(ActorRef<Message>);

impl Client for Caller {
    async fn call(&mut self, message: &[u8]) -> Result<(), Error> {
        let message = message.to_vec();
        match self.0.call(|reply| Message::Echo(message, reply), None).await? {
            ractor::rpc::CallResult::Success(_) => Ok(()),
            other => Err(format!("no reply: {other:?}").into()),
        }
    }
}
