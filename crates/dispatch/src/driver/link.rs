//! The control connections: the task of each, what it reports, and its queue.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use keydispatch_core::NodeName;
use keydispatch_core::limits::MAX_CONTROL_FRAME_BYTES;
use keydispatch_core::links::LinkId;
use keydispatch_core::message::{Address, Frame, kind};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::data::tasks::Tasks;
use crate::runtime::logged;
use crate::trace;
use crate::transport::{Connection, ConnectionError, DialError, Transport};

/// Bytes queued for one control link beyond which only the necessary goes there.
const CONGESTED_BYTES: usize = 4 * 1024 * 1024;

/// Bytes queued for one control link beyond which it is closed: the peer has stopped reading.
const MAX_QUEUED_BYTES: usize = 32 * 1024 * 1024;

/// Length prefix and kind of a frame.
const FRAME_HEAD_BYTES: usize = 5;

/// Bytes handed to a connection at once; the rest waits in the queue that is counted.
const WRITE_AHEAD_BYTES: usize = 256 * 1024;

/// How long a connection that is done with waits for the peer to close it.
const LINGER: Duration = Duration::from_millis(300);

/// What the network tells the driver.
pub(crate) enum Input {
    /// Somebody dialled this node; the first frame was a Hello for the control lane.
    Accepted {
        connection: Box<dyn Connection>,
        hello: Frame,
    },
    Dialled {
        address: Address,
        outcome: Result<Box<dyn Connection>, DialError>,
    },
    Frame {
        link: LinkId,
        frame: Frame,
    },
    /// The queue of a congested link is short again.
    Drained {
        link: LinkId,
    },
    Closed {
        link: LinkId,
        why: String,
    },
}

struct OpenLink {
    frames: mpsc::UnboundedSender<Frame>,
    queued: Arc<AtomicUsize>,
    congested: bool,
    /// Its span, until its peer has said who it is.
    unnamed: Option<tracing::Span>,
}

/// The open control links and the tasks that serve them.
pub(crate) struct OpenLinks {
    open: HashMap<LinkId, OpenLink>,
    last: u64,
    tasks: JoinSet<()>,
    /// Counts them with the tasks of the data lane.
    counted: Tasks,
}

/// What became of a frame that was queued for a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queued {
    /// It goes out; or its link has ended, and whoever asks for it is told so elsewhere.
    Fine,
    /// So much waits now that only the necessary is to go there.
    Congested,
    /// The peer does not read: the link was closed.
    TooMuch,
}

impl OpenLinks {
    pub(crate) fn new(counted: &Tasks) -> Self {
        OpenLinks {
            open: HashMap::new(),
            last: 0,
            tasks: JoinSet::new(),
            counted: counted.clone(),
        }
    }

    /// The peer has said who it is.
    pub(super) fn named(&mut self, link: LinkId, peer: &NodeName) {
        let open = self.open.get_mut(&link);
        if let Some(span) = open.and_then(|open| open.unnamed.take()) {
            span.record("keydispatch.peer", tracing::field::display(peer));
        }
    }

    pub(super) fn open(
        &mut self,
        connection: Box<dyn Connection>,
        inputs: &mpsc::Sender<Input>,
    ) -> LinkId {
        self.last += 1;
        let link = LinkId(self.last);
        let (frames, receiver) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let report = Report::closed(inputs, link);
        let serving = serve(
            connection,
            link,
            LinkQueue {
                frames: receiver,
                queued: Arc::clone(&queued),
                drained_below: CONGESTED_BYTES / 4,
            },
            inputs.clone(),
        );
        let task = async move {
            let _report = report;
            serving.await;
        };
        let task = self.counted.own("control connection", task);
        let span = trace::link(link.0);
        self.tasks.spawn(logged(task.instrument(span.clone())));
        self.open.insert(
            link,
            OpenLink {
                frames,
                queued,
                congested: false,
                unnamed: Some(span),
            },
        );
        link
    }

    /// Queues a frame.
    pub(super) fn transmit(&mut self, link: LinkId, frame: Frame) -> Queued {
        let Some(open) = self.open.get_mut(&link) else {
            return Queued::Fine;
        };
        let bytes = frame.body.len() + FRAME_HEAD_BYTES;
        let queued = open.queued.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let gone = open.frames.send(frame).is_err();
        if queued > MAX_QUEUED_BYTES && !gone {
            tracing::warn!(
                link = link.0,
                queued,
                "closing a control connection: the peer does not read"
            );
            self.open.remove(&link);
            Queued::TooMuch
        } else if queued > CONGESTED_BYTES && !open.congested {
            open.congested = true;
            Queued::Congested
        } else {
            Queued::Fine
        }
    }

    /// Dials, and reports what came of it.
    pub(super) fn dial(
        &mut self,
        transport: Arc<dyn Transport>,
        address: Address,
        inputs: &mpsc::Sender<Input>,
    ) {
        let inputs = inputs.clone();
        let report = Report::not_dialled(&inputs, &address);
        let task = async move {
            let _report = report;
            let outcome = transport.dial(&address).await;
            // The driver is gone only when the node is.
            let _ = inputs.send(Input::Dialled { address, outcome }).await;
        };
        let task = self.counted.own("dial of a control connection", task);
        self.tasks.spawn(logged(task));
    }

    /// The queue of a link is short again; true where it was congested until now.
    pub(super) fn end_congestion(&mut self, link: LinkId) -> bool {
        let open = self.open.get_mut(&link);
        open.is_some_and(|open| std::mem::take(&mut open.congested))
    }

    /// Nothing is sent on it any more: its task flushes what is queued, and ends. False where it had ended already.
    pub(super) fn close(&mut self, link: LinkId) -> bool {
        self.open.remove(&link).is_some()
    }

    pub(super) fn close_all(&mut self) {
        self.open.clear();
    }

    /// Forgets the tasks that have ended.
    pub(super) fn join_ended(&mut self) {
        while self.tasks.try_join_next().is_some() {}
    }

    /// Waits until all tasks have ended.
    pub(super) async fn join_all(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    pub(super) fn abort_all(&mut self) {
        self.tasks.abort_all();
    }
}

/// What is to be sent on a connection.
struct LinkQueue {
    frames: mpsc::UnboundedReceiver<Frame>,
    /// Bytes in `frames`, kept by both sides; the sender judges it.
    queued: Arc<AtomicUsize>,
    /// The driver hears once the queue has been above and falls below this.
    drained_below: usize,
}

/// Says to the driver that a task has panicked, as the event that it waits for from that task.
///
/// Rule: whatever the driver waits for comes, or a link that nobody serves would count as open for ever.
struct Report {
    inputs: mpsc::Sender<Input>,
    input: Option<Input>,
}

impl Report {
    /// Of the task of a link.
    fn closed(inputs: &mpsc::Sender<Input>, link: LinkId) -> Self {
        let why = "its task panicked".to_owned();
        Report {
            inputs: inputs.clone(),
            input: Some(Input::Closed { link, why }),
        }
    }

    /// Of a dial.
    fn not_dialled(inputs: &mpsc::Sender<Input>, address: &Address) -> Self {
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
async fn serve(
    mut connection: Box<dyn Connection>,
    link: LinkId,
    mut queue: LinkQueue,
    inputs: mpsc::Sender<Input>,
) {
    connection.set_frame_limit(MAX_CONTROL_FRAME_BYTES);
    let mut full = false;
    loop {
        let step = poll_fn(|cx| step(cx, &mut *connection, &mut queue, &mut full)).await;
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
            flush(&mut *connection, &mut queue).await;
            return linger(&mut *connection, link, &inputs).await;
        }
    }
}

fn step(
    cx: &mut Context<'_>,
    connection: &mut dyn Connection,
    queue: &mut LinkQueue,
    full: &mut bool,
) -> Poll<Step> {
    match write(cx, connection, queue) {
        Ok(true) => return Poll::Ready(Step::Finished),
        Ok(false) => {}
        Err(error) => return Poll::Ready(Step::Closed(error.to_string())),
    }
    let queued = queue.queued.load(Ordering::Relaxed);
    if queued > queue.drained_below {
        *full = true;
    } else if std::mem::take(full) {
        return Poll::Ready(Step::Drained);
    }
    match connection.poll_frame(cx) {
        Poll::Ready(Some(Ok(frame))) => Poll::Ready(Step::Frame(frame)),
        Poll::Ready(Some(Err(error))) => {
            error.log_fault(connection.peer());
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
    queue: &mut LinkQueue,
) -> Result<bool, ConnectionError> {
    loop {
        let mut finished = false;
        while connection.buffered() < WRITE_AHEAD_BYTES {
            match queue.frames.poll_recv(cx) {
                Poll::Ready(Some(frame)) => {
                    let bytes = frame.body.len() + FRAME_HEAD_BYTES;
                    queue.queued.fetch_sub(bytes, Ordering::Relaxed);
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

async fn flush(connection: &mut dyn Connection, queue: &mut LinkQueue) {
    let _ = poll_fn(|cx| match write(cx, connection, queue) {
        Ok(true) => Poll::Ready(Ok(())),
        Ok(false) => Poll::Pending,
        Err(error) => Poll::Ready(Err(error)),
    })
    .await;
}
