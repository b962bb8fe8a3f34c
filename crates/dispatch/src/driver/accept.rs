//! The acceptor, which tells the lanes apart.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use keydispatch_core::message::{ControlMessage, Hello, LaneKind, Refusal};
use keydispatch_core::{Escaped, admission};
use tokio::sync::mpsc;

use super::link::Input;
use crate::data::inbound::Answering;
use crate::log_limit::{LogLimit, LogNow, host};
use crate::transport::doorstep::{Doorstep, source};
use crate::transport::{Connection, Transport};

/// Accepts connections until the task is aborted; each goes to the lane that its Hello names, which has to come within
/// `patience` after the connection was made.
pub(crate) async fn accept(
    transport: Arc<dyn Transport>,
    inputs: mpsc::Sender<Input>,
    answering: Arc<Answering>,
    ours: Arc<ArcSwap<Hello>>,
    patience: Duration,
) {
    let mut doorstep = Doorstep::new();
    let log_limit = Arc::new(LogLimit::default());
    loop {
        let accepted = tokio::select! {
            accepted = transport.accept() => accepted,
            () = doorstep.greeted() => continue,
        };
        match accepted {
            Ok(connection) => {
                let (inputs, answering, ours) =
                    (inputs.clone(), Arc::clone(&answering), Arc::clone(&ours));
                let log_limit = Arc::clone(&log_limit);
                let until = connection.opened() + patience;
                let peer = connection.peer().parse::<SocketAddr>();
                let source = peer.ok().map(|peer| source(peer.ip()));
                let meter = connection.meter().clone();
                let greeting = async move {
                    let greeting = greet(connection, &inputs, &answering, &ours, &log_limit);
                    if tokio::time::timeout_at(until, greeting).await.is_err() {
                        tracing::debug!("a connection said no hello in time");
                    }
                    Some(())
                };
                doorstep.admit(source, meter, greeting).await;
            }
            Err(error) => {
                if answering.is_closed() {
                    tracing::debug!(%error, "this node no longer accepts connections");
                } else {
                    tracing::warn!(%error, "this node no longer accepts connections");
                }
                return;
            }
        }
    }
}

async fn greet(
    mut connection: Box<dyn Connection>,
    inputs: &mpsc::Sender<Input>,
    answering: &Arc<Answering>,
    ours: &ArcSwap<Hello>,
    log_limit: &LogLimit,
) {
    let first = match poll_fn(|cx| connection.poll_frame(cx)).await {
        Some(Ok(frame)) => frame,
        Some(Err(error)) => {
            let peer = connection.peer();
            if let Some(LogNow { suppressed }) =
                log_limit.should_log(&host(peer), &error.to_string())
            {
                tracing::warn!(peer = %Escaped(peer), error = %Escaped(error), suppressed, "refusing a connection");
            }
            return;
        }
        None => return,
    };
    match ControlMessage::decode(&first) {
        Ok(Some(ControlMessage::Hello(theirs))) if theirs.lane == LaneKind::Data => {
            let ours = ours.load();
            let greeted = answering.greet();
            let verdict = admission::check(&ours, &theirs, connection.credentials())
                .and_then(|()| greeted.as_ref().map(|_| ()).ok_or(Refusal::Left));
            let answer = match &verdict {
                Ok(()) => ControlMessage::Hello(Hello {
                    lane: LaneKind::Data,
                    ..Hello::clone(&ours)
                }),
                Err(refusal) => {
                    let why = refusal.to_string();
                    let about = host(connection.peer());
                    if *refusal != Refusal::Left
                        && let Some(LogNow { suppressed }) = log_limit.should_log(&about, &why)
                    {
                        tracing::warn!(peer = %theirs.node, why = %Escaped(why), suppressed, "refusing a data connection");
                    }
                    ControlMessage::Refuse(refusal.clone())
                }
            };
            connection.send(answer.encode());
            if poll_fn(|cx| connection.poll_flush(cx)).await.is_ok() && verdict.is_ok() {
                answering.serve(connection, theirs);
            }
        }
        // Everything else, good or bad, is the state machine's to judge.
        _ => {
            let _ = inputs
                .send(Input::Accepted {
                    connection,
                    hello: first,
                })
                .await;
        }
    }
}
