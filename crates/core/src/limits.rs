//! The limits, each a named constant, checked at the edge with an error that names it.

/// Longest name of a node, cluster, service type, instance, zone or topic, in bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 255;

/// Longest address of a node or an external endpoint, in bytes of UTF-8.
pub const MAX_ADDRESS_BYTES: usize = 1024;

/// Most bytes of metadata of one service: its zone, its address, and its tags' keys and values.
pub const MAX_METADATA_BYTES: usize = 4 * 1024;

/// Longest frame on a control lane, in bytes after the length prefix.
///
/// Nothing larger is ever sent there, so that a probe never waits behind a large message.
pub const MAX_CONTROL_FRAME_BYTES: usize = 1024 * 1024;

/// Default longest payload of a call, a cast, a reply or a broadcast, in bytes.
pub const DEFAULT_MAX_PAYLOAD_BYTES: usize = 16 * 1024 * 1024;

/// Longest payload of a call, a cast, a reply or a broadcast that can be set, in bytes: with what comes before it, a frame's
/// length has to fit into its four bytes. A larger setting counts as this.
pub const MAX_PAYLOAD_BYTES: usize = u32::MAX as usize - 64 * 1024;

/// Default for the most bytes of messages that wait in one mailbox.
pub const DEFAULT_MAILBOX_BYTES: usize = 64 * 1024 * 1024;

/// Most instances of one service type in the cluster.
pub const MAX_INSTANCES_PER_TYPE: usize = 10_000;

/// Most services that one node registers.
pub const MAX_SERVICES_PER_NODE: usize = 1_000_000;

/// Most bytes of the services of one node, as they are in messages: of a million, half a kilobyte each; with all the metadata
/// that one may have, 130,000.
pub const MAX_BYTES_PER_NODE: usize = 512 * 1024 * 1024;

/// Most service types that one node registers services of.
pub const MAX_TYPES_PER_NODE: usize = 100_000;

/// Most nodes that one node keeps track of, living and recently dead together.
///
/// The cluster is designed for 300 living ones; the rest is room for the names of the dead, which are
/// kept for `permdown_period`.
pub const MAX_KNOWN_NODES: usize = 4_096;

/// Lowest and highest weight of an instance.
pub const WEIGHT_RANGE: std::ops::RangeInclusive<u16> = 1..=1000;

/// Weight of an instance that asks for none.
pub const DEFAULT_WEIGHT: u16 = 100;
