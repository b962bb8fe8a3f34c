//! `Protocol`: the vocabulary that callers and services share, and how it may change while both run.

use std::ops::RangeInclusive;

use keydispatch_core::{Accepts, Codec, Routing};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What can be sent to a service and back: anything that serde encodes.
pub trait Message: Serialize + DeserializeOwned + Send + 'static {}

impl<T: Serialize + DeserializeOwned + Send + 'static> Message for T {}

/// The messages of a service type, shared by those who serve it and those who call it.
///
/// ```
/// # use serde::{Serialize, Deserialize};
/// struct Uploads;
///
/// impl keydispatch::Protocol for Uploads {
///     const NAME: &'static str = "uploader";
///     type Call = String;           // a file's name
///     type Reply = Option<Vec<u8>>; // its contents
///     type Cast = (String, Vec<u8>);
/// }
/// ```
///
/// # How messages cross
///
/// Between nodes a message is encoded by [`CODEC`](Self::CODEC). Within one process it moves as it is, so that a message
/// which cannot be encoded, or not decoded again, would fail on the day of the second node. In debug builds, and on a
/// [`MemoryNetwork`](crate::testkit::MemoryNetwork), local calls, casts and replies are therefore encoded and decoded as
/// remote ones are; [`NodeBuilder::check_messages`](crate::NodeBuilder::check_messages) does the same in release builds.
///
/// # Messages that change
///
/// A change that both sides understand (see [`Codec`]) needs nothing. For another one, raise
/// [`VERSION`](Self::VERSION), and let the new services say in [`ACCEPTS`](Self::ACCEPTS) that they take the old
/// messages, too:
///
/// ```
/// # use serde::{Serialize, Deserialize};
/// #[derive(Serialize, Deserialize)]
/// enum Ask {
///     Get,           // version 1
///     Add(u64),      // since version 2, at the end
/// }
///
/// struct Counters;
///
/// impl keydispatch::Protocol for Counters {
///     const NAME: &'static str = "counter";
///     const VERSION: u32 = 2;                                      // what this program sends
///     const ACCEPTS: std::ops::RangeInclusive<u32> = 1..=2;        // what its services take
///     type Call = Ask;
///     type Reply = u64;                                            // callers of version 1 have to understand it, too
///     type Cast = ();
/// }
/// ```
///
/// Calls go to the instances that take the caller's version, and keys are placed among these alone. Replace the services
/// first, one node after the other, then the callers: then no call fails, and at each moment each key has one owner. Where
/// callers of version 2 run while services of version 1 still do, a key whose owner is one of version 1 has two owners for
/// that time, one for the callers of each version. [`Context::version`](crate::Context::version) says which version a
/// message is of.
pub trait Protocol: Send + Sync + 'static {
    /// The service type, 1 to 255 bytes.
    const NAME: &'static str;
    /// The version of the messages that are sent. Where no instance takes it, that is
    /// [`CallError::Incompatible`](crate::CallError::Incompatible), never a misread message.
    const VERSION: u32 = 1;
    /// The versions of messages that a service of this program takes; `VERSION` is one of them.
    const ACCEPTS: RangeInclusive<u32> = Self::VERSION..=Self::VERSION;
    /// How messages and replies are encoded. Both sides must say the same: another codec is
    /// [`CallError::Incompatible`](crate::CallError::Incompatible), as another version is.
    const CODEC: Codec = Codec::Postcard;
    /// How calls are routed, unless a handle says otherwise ([`CallOptions::routing`](crate::CallOptions::routing)): to the
    /// owner of the key, or bounded by its load. State that lives in its owner alone needs [`Routing::Owner`].
    const ROUTING: Routing = Routing::Owner;
    /// What is called.
    type Call: Message;
    /// What a call is answered with.
    type Reply: Message;
    /// What is cast: sent without an answer. `()` where nothing is.
    type Cast: Message;
}

/// What the services of a protocol take.
pub(crate) const fn accepts<P: Protocol>() -> Accepts {
    const {
        assert!(
            *P::ACCEPTS.start() <= P::VERSION && P::VERSION <= *P::ACCEPTS.end(),
            "a protocol accepts its own version: VERSION has to be in ACCEPTS"
        );
    }
    Accepts::new(P::ACCEPTS, P::CODEC)
}

/// What an entry has to say of it: nothing where it takes one version in postcard, as all did once.
pub(crate) fn accepts_to_say<P: Protocol>() -> Option<Accepts> {
    let accepts = accepts::<P>();
    (accepts != Accepts::only(P::VERSION)).then_some(accepts)
}
