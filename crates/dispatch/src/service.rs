//! `Service`: own state, one message at a time, a bounded mailbox.

use crate::data::mailbox::StopReason;
use crate::data::reply::ReplyTo;
use crate::protocol::Protocol;

pub(crate) mod blocking;
pub(crate) mod context;
pub(crate) mod current;
pub(crate) mod host;
pub(crate) mod info;
pub(crate) mod options;
mod runner;
pub(crate) mod serve;
pub(crate) mod supervisor;

use self::context::Context;

/// What a handler or a factory may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How a service came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// It was asked to, or its node left.
    Stopped(StopReason),
    /// A handler panicked.
    Panicked,
    /// Its node was dropped.
    Aborted,
}

/// One running service, in the shape of a GenServer: it owns its state, and handles one message at a time.
///
/// ```
/// use keydispatch::{Context, Protocol, ReplyTo, Service};
/// # struct Counters;
/// # impl Protocol for Counters {
/// #     const NAME: &'static str = "counter";
/// #     type Call = (); type Reply = u64; type Cast = u64;
/// # }
/// struct Counter(u64);
///
/// impl Service for Counter {
///     type Protocol = Counters;
///
///     async fn handle_call(&mut self, _: (), reply_to: ReplyTo<u64>, _: &mut Context<Self>) {
///         reply_to.reply(self.0);
///     }
///
///     async fn handle_cast(&mut self, more: u64, _: &mut Context<Self>) {
///         self.0 += more;
///     }
/// }
/// ```
///
/// What a service's own tasks have to tell it is a private message: see [`HandleInfo`](crate::HandleInfo).
///
/// # What blocks
///
/// Handlers run on the tokio runtime that the node was started on. One that computes for long, or waits without `await`
/// (files, locks, `std::thread::sleep`), holds a thread of that runtime: the other services, and whatever else the program
/// runs there, wait for it once all of the threads are held. The node itself does not: it has threads of its own, so the
/// other nodes go on hearing of it, and callers wait for their answers until their timeouts. What blocks belongs into
/// [`spawn_blocking`](https://docs.rs/tokio/latest/tokio/task/fn.spawn_blocking.html); awaiting it holds nobody up:
///
/// ```
/// use keydispatch::{Context, Protocol, ReplyTo, Service};
/// # struct Sums;
/// # impl Protocol for Sums {
/// #     const NAME: &'static str = "sum";
/// #     type Call = u64; type Reply = u64; type Cast = ();
/// # }
/// struct Sum;
///
/// impl Service for Sum {
///     type Protocol = Sums;
///
///     async fn handle_call(&mut self, up_to: u64, reply_to: ReplyTo<u64>, _: &mut Context<Self>) {
///         let sum = tokio::task::spawn_blocking(move || (0..=up_to).sum());
///         // Where it panics the call fails with `NoReply`.
///         if let Ok(sum) = sum.await {
///             reply_to.reply(sum);
///         }
///     }
/// }
/// ```
///
/// This service handles its next message once this one is done; with the work in a spawned task that takes `reply_to` along
/// it goes on at once. A handler that has held a thread for a second is named in the log, at `warn`, once, and again after
/// twice as long. One that merely awaits for long is not.
///
/// # Panics
///
/// A handler that panics ends this instance alone: its entry leaves the registry at once, and its callers get
/// [`CallError::Stopped`](crate::CallError::Stopped). With `panic = "abort"` it ends the process, as any panic does.
pub trait Service: Sized + Send + 'static {
    /// The messages that it understands.
    type Protocol: Protocol;

    /// Runs before the service is registered; an error is what [`serve`](crate::Node::serve) returns.
    fn started(
        &mut self,
        cx: &mut Context<Self>,
    ) -> impl Future<Output = Result<(), BoxError>> + Send {
        let _ = cx;
        async { Ok(()) }
    }

    /// A call. `reply_to` is used now, moved away and used later, or dropped: then the caller gets
    /// [`CallError::NoReply`](crate::CallError::NoReply).
    fn handle_call(
        &mut self,
        call: <Self::Protocol as Protocol>::Call,
        reply_to: ReplyTo<<Self::Protocol as Protocol>::Reply>,
        cx: &mut Context<Self>,
    ) -> impl Future<Output = ()> + Send;

    /// A cast: from a caller, or from the service to itself, at once or by a timer.
    fn handle_cast(
        &mut self,
        cast: <Self::Protocol as Protocol>::Cast,
        cx: &mut Context<Self>,
    ) -> impl Future<Output = ()> + Send {
        let _ = (cast, cx);
        async {}
    }

    /// Runs when the service stops by request or because its node leaves; not after a panic, nor when the node is
    /// dropped. The entry has left the registry by then.
    fn stopped(&mut self, reason: StopReason) -> impl Future<Output = ()> + Send {
        let _ = reason;
        async {}
    }
}
