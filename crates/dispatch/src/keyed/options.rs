//! How a keyed service is started.

use std::time::Duration;

use crate::service::options::ServeOptions;

/// Longest state unless [`KeyedOptions::max_state_bytes`] says otherwise.
const DEFAULT_MAX_STATE_BYTES: usize = 64 * 1024 * 1024;

/// How long a key may take to open unless [`KeyedOptions::open_timeout`] says otherwise: longer than calls wait by default.
const DEFAULT_OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages that wait for all keys of an instance unless [`KeyedOptions::mailbox`] says otherwise.
pub(super) const DEFAULT_KEYED_MAILBOX: usize = 65_536;

/// How a keyed service is started; see [`Node::serve_keyed_with`](crate::Node::serve_keyed_with).
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct KeyedOptions {
    pub(super) serve: ServeOptions,
    pub(super) max_state_bytes: usize,
    pub(super) open_timeout: Duration,
    pub(super) idle_after: Option<Duration>,
}

impl Default for KeyedOptions {
    fn default() -> Self {
        KeyedOptions {
            serve: ServeOptions::new(),
            max_state_bytes: DEFAULT_MAX_STATE_BYTES,
            open_timeout: DEFAULT_OPEN_TIMEOUT,
            idle_after: None,
        }
    }
}

impl KeyedOptions {
    /// A default name, weight 100, the node's zone, no tags, online, 65,536 messages and 64 MiB of them that wait, states of up
    /// to 64 MiB, ten seconds to open a key, and no end to a key's state by itself.
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`ServeOptions::name`].
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.serve = self.serve.name(name);
        self
    }

    /// See [`ServeOptions::weight`].
    pub fn weight(mut self, weight: u16) -> Self {
        self.serve = self.serve.weight(weight);
        self
    }

    /// See [`ServeOptions::zone`].
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.serve = self.serve.zone(zone);
        self
    }

    /// See [`ServeOptions::tag`].
    pub fn tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.serve = self.serve.tag(key, value);
        self
    }

    /// Registered, but without keys until it is enabled.
    pub fn offline(mut self) -> Self {
        self.serve = self.serve.offline();
        self
    }

    /// How many messages may wait for all keys together; more are refused as
    /// [`CallError::Overloaded`](crate::CallError::Overloaded).
    pub fn mailbox(mut self, messages: usize) -> Self {
        self.serve = self.serve.mailbox(messages);
        self
    }

    /// How many bytes of messages may wait for all keys together, by default 64 MiB. One message is always taken.
    pub fn mailbox_bytes(mut self, bytes: usize) -> Self {
        self.serve = self.serve.mailbox_bytes(bytes);
        self
    }

    /// How long the state of a key may be, encoded, in bytes. A longer one is served on where it is, and cannot be given: it
    /// keeps a drain from its end, which reports it. All states of one of the
    /// [`KEYED_SLOTS`](crate::KEYED_SLOTS) together can be given up to 512 MiB.
    pub fn max_state_bytes(mut self, bytes: usize) -> Self {
        self.max_state_bytes = bytes;
        self
    }

    /// How long [`Keyed::open`](crate::Keyed::open) may take before the calls that wait for it fail.
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.open_timeout = timeout;
        self
    }

    /// Asks [`Keyed::idle`](crate::Keyed::idle) about each key that had no message for so long; within twice that time.
    pub fn idle_after(mut self, idle: Duration) -> Self {
        self.idle_after = Some(idle);
        self
    }
}
