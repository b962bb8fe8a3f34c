//! `Keyed`: a service with a state for each key, which goes wherever its key goes.

use keydispatch_core::KeyBytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::data::reply::ReplyTo;
use crate::protocol::Protocol;
use crate::service::BoxError;

mod cells;
pub(crate) mod context;
pub(crate) mod current;
mod error;
pub(crate) mod events;
pub(crate) mod options;
mod ready;
pub(crate) mod serve;
mod store;
mod work;
mod workers;

use self::context::KeyContext;

/// What becomes of a key that nobody has called for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Its state stays in memory.
    Keep,
    /// Its state is handed to [`Keyed::closed`]; the next message opens the key anew.
    Close,
}

/// Why a key's state is handed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Closed {
    /// Nobody has called the key for [`KeyedOptions::idle_after`](crate::KeyedOptions::idle_after).
    Idle,
    /// A handler has asked for it, by [`KeyContext::close`].
    ByHandler,
    /// The service has stopped, or its node left, and there was nobody to give the state to.
    Stopped,
}

/// A service with one state for each key: messages of one key are handled one at a time, those of different keys side by
/// side. When the owner of a key changes, because an instance comes, goes, or gets another weight, the key's state goes to
/// the new owner, and messages follow it; none is lost by that, and none runs twice.
///
/// ```
/// use keydispatch::{BoxError, KeyBytes, KeyContext, Keyed, Node, Protocol, ReplyTo};
///
/// struct Counts;
///
/// impl Protocol for Counts {
///     const NAME: &'static str = "counter";
///     type Call = u64;
///     type Reply = u64;
///     type Cast = ();
/// }
///
/// struct Counters;
///
/// impl Keyed for Counters {
///     type Protocol = Counts;
///     type State = u64;
///
///     async fn open(&self, _: &KeyBytes) -> Result<u64, BoxError> {
///         Ok(0)
///     }
///
///     async fn handle_call(&self, count: &mut u64, more: u64, reply_to: ReplyTo<u64>, _: &mut KeyContext<Self>) {
///         *count += more;
///         reply_to.reply(*count);
///     }
/// }
///
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let node = Node::builder("a").bind("127.0.0.1:0").plaintext().start().await?;
/// node.serve_keyed(Counters).await?;
/// let counters = node.keyed::<Counts>();
/// assert_eq!(counters.call("apples", 3).await?, 3);
/// assert_eq!(counters.call("apples", 4).await?, 7);
/// assert_eq!(counters.call("pears", 1).await?, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What is kept, and what is not
///
/// A state is in the memory of one process at a time. A planned change (leaving, draining, another weight, an instance more)
/// moves it. A process that dies takes its states along: their keys are opened anew on their next owners, and
/// [`KeyedEvent::Anew`](crate::KeyedEvent::Anew) says which slots that may be. In a partition both sides serve, each with states of its own; once it
/// is over, [`merge`](Self::merge) makes one of two.
///
/// # Panics
///
/// A handler that panics ends the state of its key alone: its caller gets [`CallError::Stopped`](crate::CallError::Stopped),
/// and the next message opens the key anew. With `panic = "abort"` it ends the process, as any panic does.
///
/// # Between versions
///
/// A state travels as serde encodes it in postcard, by position. While a rolling upgrade changes the fields, new instances
/// have to read what old ones wrote: add variants to an enum at its end, or keep a version in the state. A state that does not
/// decode stays as it came, calls to its key fail as [`CallError::NoState`](crate::CallError::NoState), and it goes on to the
/// next owner untouched.
pub trait Keyed: Sized + Send + Sync + 'static {
    /// The messages that it understands.
    type Protocol: Protocol;
    /// What there is for each key.
    type State: Serialize + DeserializeOwned + Send + 'static;

    /// The state of a key that has none: at its first message, after it was closed, or after the process that had it died.
    ///
    /// # Errors
    ///
    /// Whatever it fails with is what the callers get who wait, as [`CallError::NoState`](crate::CallError::NoState). So does
    /// taking longer than [`KeyedOptions::open_timeout`](crate::KeyedOptions::open_timeout).
    fn open(&self, key: &KeyBytes) -> impl Future<Output = Result<Self::State, BoxError>> + Send;

    /// A call. `reply_to` is used now, moved away and used later, or dropped: then the caller gets
    /// [`CallError::NoReply`](crate::CallError::NoReply).
    ///
    /// A handler that runs when its key is to move is waited for: the state goes once it is done.
    fn handle_call(
        &self,
        state: &mut Self::State,
        call: <Self::Protocol as Protocol>::Call,
        reply_to: ReplyTo<<Self::Protocol as Protocol>::Reply>,
        cx: &mut KeyContext<Self>,
    ) -> impl Future<Output = ()> + Send;

    /// A cast.
    fn handle_cast(
        &self,
        state: &mut Self::State,
        cast: <Self::Protocol as Protocol>::Cast,
        cx: &mut KeyContext<Self>,
    ) -> impl Future<Output = ()> + Send {
        let _ = (state, cast, cx);
        async {}
    }

    /// A key that nobody has called for [`KeyedOptions::idle_after`](crate::KeyedOptions::idle_after); without that option it is never asked.
    fn idle(&self, key: &KeyBytes, state: &mut Self::State) -> impl Future<Output = Idle> + Send {
        let _ = (key, state);
        async { Idle::Close }
    }

    /// The state of a key that is not kept any more, to be written somewhere. Not called for what moves, nor after a panic, nor
    /// when the node is dropped.
    fn closed(
        &self,
        key: &KeyBytes,
        state: Self::State,
        why: Closed,
    ) -> impl Future<Output = ()> + Send {
        let _ = (key, state, why);
        async {}
    }

    /// One state of two that a key has had at once: after a partition in which both sides served, or after a node was taken
    /// for dead that was not. `theirs` is what came; `ours` is what is served, or the later one of the two.
    ///
    /// It may be asked again for what it has merged already, where connections break at the wrong moment: merging the same
    /// twice has to be the same as once. Without it, `theirs` is dropped.
    fn merge(&self, key: &KeyBytes, ours: Self::State, theirs: Self::State) -> Self::State {
        let _ = (key, theirs);
        ours
    }
}
