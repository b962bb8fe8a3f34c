//! The task of one control connection, and the acceptor that tells the lanes apart.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use keydispatch_core::Escaped;
use keydispatch_core::admission;
use keydispatch_core::limits::MAX_CONTROL_FRAME_BYTES;
use keydispatch_core::links::LinkId;
use keydispatch_core::message::{Address, ControlMessage, Frame, Hello, LaneKind, Refusal, kind};
use tokio::sync::mpsc;

use crate::complaints::{Complaints, News, host};
use crate::data::DataPlane;
use crate::driver::Input;
use crate::transport::doorstep::{Doorstep, source};
use crate::transport::{Connection, ConnectionError, DialError, Transport};

/// Length prefix and kind of a frame.
pub(crate) const FRAME_HEAD_BYTES: usize = 5;

/// Bytes handed to a connection at once; the rest waits in the queue that is counted.
const WRITE_AHEAD_BYTES: usize = 256 * 1024;

/// How long a connection that is done with waits for the peer to close it.
const LINGER: Duration = Duration::from_millis(300);

/// What is to be sent on a connection.
pub(crate) struct Outgoing {
    pub(crate) frames: mpsc::UnboundedReceiver<Frame>,
    /// Bytes in `frames`, kept by both sides; the sender judges it.
    pub(crate) queued: Arc<AtomicUsize>,
    /// The driver hears once the queue has been above and falls below this.
    pub(crate) drained_below: usize,
}

/// Says to the driver that a task has panicked, as the event that it waits for from that task.
///
/// Rule: whatever the driver waits for comes, or a link that nobody serves would count as open for ever.
pub(crate) struct Report {
    inputs: mpsc::Sender<Input>,
    input: Option<Input>,
}

impl Report {
    /// Of the task of a link.
    pub(crate) fn closed(inputs: &mpsc::Sender<Input>, link: LinkId) -> Self {
        let why = "its task panicked".to_owned();
        Report {
            inputs: inputs.clone(),
            input: Some(Input::Closed { link, why }),
        }
    }

    /// Of a dial.
    pub(crate) fn not_dialled(inputs: &mpsc::Sender<Input>, address: &Address) -> Self {
        let outcome = Err(DialError::Unreachable {
            address: address.clone(),
            source: std::io::Error::other("its task panicked"),
        });
        Report {
            inputs: inputs.clone(),
            input: Some(Input::Dialled {
                address: address.clone(),
                outcome,
            }),
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        tracing::error!("a task of a control connection has panicked");
        let inputs = self.inputs.clone();
        if let (Some(input), Ok(runtime)) =
            (self.input.take(), tokio::runtime::Handle::try_current())
        {
            // The queue may be full, and nobody can wait here.
            runtime.spawn(async move { inputs.send(input).await });
        }
    }
}

enum Step {
    Frame(Frame),
    Drained,
    Finished,
    Closed(String),
}

/// Serves one control connection until either side is done with it.
pub(crate) async fn serve(
    mut connection: Box<dyn Connection>,
    link: LinkId,
    mut outgoing: Outgoing,
    inputs: mpsc::Sender<Input>,
) {
    connection.set_frame_limit(MAX_CONTROL_FRAME_BYTES);
    let mut full = false;
    loop {
        let step = poll_fn(|cx| step(cx, &mut *connection, &mut outgoing, &mut full)).await;
        let input = match step {
            Step::Frame(frame) => Input::Frame { link, frame },
            Step::Drained => Input::Drained { link },
            Step::Finished => return linger(&mut *connection, link, &inputs).await,
            Step::Closed(why) => {
                let _ = inputs.send(Input::Closed { link, why }).await;
                return;
            }
        };
        if inputs.send(input).await.is_err() {
            // The driver has stopped: what it queued is flushed all the same.
            flush(&mut *connection, &mut outgoing).await;
            return linger(&mut *connection, link, &inputs).await;
        }
    }
}

fn step(
    cx: &mut Context<'_>,
    connection: &mut dyn Connection,
    outgoing: &mut Outgoing,
    full: &mut bool,
) -> Poll<Step> {
    match write(cx, connection, outgoing) {
        Ok(true) => return Poll::Ready(Step::Finished),
        Ok(false) => {}
        Err(error) => return Poll::Ready(Step::Closed(error.to_string())),
    }
    let queued = outgoing.queued.load(Ordering::Relaxed);
    if queued > outgoing.drained_below {
        *full = true;
    } else if std::mem::take(full) {
        return Poll::Ready(Step::Drained);
    }
    match connection.poll_frame(cx) {
        Poll::Ready(Some(Ok(frame))) => Poll::Ready(Step::Frame(frame)),
        Poll::Ready(Some(Err(error))) => {
            error.complain(connection.peer());
            Poll::Ready(Step::Closed(error.to_string()))
        }
        Poll::Ready(None) => Poll::Ready(Step::Closed("closed by the peer".to_owned())),
        Poll::Pending => Poll::Pending,
    }
}

/// Moves frames into the connection and the connection's bytes out; true once the sender is gone and all is flushed.
fn write(
    cx: &mut Context<'_>,
    connection: &mut dyn Connection,
    outgoing: &mut Outgoing,
) -> Result<bool, ConnectionError> {
    loop {
        let mut finished = false;
        while connection.buffered() < WRITE_AHEAD_BYTES {
            match outgoing.frames.poll_recv(cx) {
                Poll::Ready(Some(frame)) => {
                    let bytes = frame.body.len() + FRAME_HEAD_BYTES;
                    outgoing.queued.fetch_sub(bytes, Ordering::Relaxed);
                    connection.send(frame);
                }
                Poll::Ready(None) => {
                    finished = true;
                    break;
                }
                Poll::Pending => break,
            }
        }
        if connection.buffered() == 0 {
            return Ok(finished);
        }
        match connection.poll_flush(cx) {
            Poll::Ready(Ok(())) if finished => return Ok(true),
            // More may have been queued than fitted at once.
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => return Ok(false),
        }
    }
}

/// Reads what still comes, for a moment: closing with unread bytes resets the connection, and the last frames with it.
/// One of them may be the peer's goodbye.
async fn linger(connection: &mut dyn Connection, link: LinkId, inputs: &mpsc::Sender<Input>) {
    let rest = async {
        while let Some(Ok(frame)) = poll_fn(|cx| connection.poll_frame(cx)).await {
            if frame.kind == kind::GOODBYE {
                // The driver may have stopped, too.
                let _ = inputs.send(Input::Frame { link, frame }).await;
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, rest).await;
}

async fn flush(connection: &mut dyn Connection, outgoing: &mut Outgoing) {
    let _ = poll_fn(|cx| match write(cx, connection, outgoing) {
        Ok(true) => Poll::Ready(Ok(())),
        Ok(false) => Poll::Pending,
        Err(error) => Poll::Ready(Err(error)),
    })
    .await;
}

/// Accepts connections until the task is aborted; each goes to the lane that its Hello names, which has to come within
/// `patience` after the connection was made.
pub(crate) async fn accept(
    transport: Arc<dyn Transport>,
    inputs: mpsc::Sender<Input>,
    data: Arc<DataPlane>,
    ours: Arc<ArcSwap<Hello>>,
    patience: Duration,
) {
    let mut doorstep = Doorstep::new();
    let complaints = Arc::new(Complaints::default());
    loop {
        let accepted = tokio::select! {
            accepted = transport.accept() => accepted,
            () = doorstep.greeted() => continue,
        };
        match accepted {
            Ok(connection) => {
                let (inputs, data, ours) = (inputs.clone(), Arc::clone(&data), Arc::clone(&ours));
                let complaints = Arc::clone(&complaints);
                let until = connection.opened() + patience;
                let peer = connection.peer().parse::<SocketAddr>();
                let source = peer.ok().map(|peer| source(peer.ip()));
                let meter = connection.meter().clone();
                let greeting = async move {
                    let greeting = greet(connection, &inputs, &data, &ours, &complaints);
                    if tokio::time::timeout_at(until, greeting).await.is_err() {
                        tracing::debug!("a connection said no hello in time");
                    }
                    Some(())
                };
                doorstep.admit(source, meter, greeting).await;
            }
            Err(error) => {
                if data.is_closed() {
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
    data: &Arc<DataPlane>,
    ours: &ArcSwap<Hello>,
    complaints: &Complaints,
) {
    let first = match poll_fn(|cx| connection.poll_frame(cx)).await {
        Some(Ok(frame)) => frame,
        Some(Err(error)) => {
            let peer = connection.peer();
            if let Some(News { suppressed }) = complaints.news(&host(peer), &error.to_string()) {
                tracing::warn!(peer = %Escaped(peer), error = %Escaped(error), suppressed, "refusing a connection");
            }
            return;
        }
        None => return,
    };
    match ControlMessage::decode(&first) {
        Ok(Some(ControlMessage::Hello(theirs))) if theirs.lane == LaneKind::Data => {
            let ours = ours.load();
            let greeted = data.greet();
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
                        && let Some(News { suppressed }) = complaints.news(&about, &why)
                    {
                        tracing::warn!(peer = %theirs.node, why = %Escaped(why), suppressed, "refusing a data connection");
                    }
                    ControlMessage::Refuse(refusal.clone())
                }
            };
            connection.send(answer.encode());
            if poll_fn(|cx| connection.poll_flush(cx)).await.is_ok() && verdict.is_ok() {
                data.inbound(connection, theirs);
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
