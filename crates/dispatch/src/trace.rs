//! Spans of calls, and how they cross nodes.
//!
//! All are of level DEBUG, so that a subscriber that listens to INFO and above costs a call nothing but one
//! look at whether somebody listens:
//!
//! | span | target | kind | fields |
//! |---|---|---|---|
//! | `call` | `keydispatch::call` | client | `rpc.system`, `rpc.service` (the type), `rpc.method`, `keydispatch.slot`, and of the last attempt `keydispatch.instance`, `keydispatch.node`, `keydispatch.attempt`; where it failed `error.type`, `otel.status_code` |
//! | `handle` | `keydispatch::service` | server | `rpc.system`, `rpc.service`, `rpc.method`, `keydispatch.instance`, and of a call from another node `keydispatch.caller` |
//! | `link` | `keydispatch::node` | | `keydispatch.link`, `keydispatch.peer`: one control connection, and whom it leads to |
//! | `node` | `keydispatch::node` | | `keydispatch.node`, `keydispatch.cluster`: the task that owns the node's state |
//!
//! `rpc.*` and `error.type` are OpenTelemetry's conventions for RPC. A key is in no span: it may be somebody's name.
//!
//! On one node the span of the handler is a child of that of the call. Between nodes what is passed on is a `traceparent` of
//! [W3C Trace Context](https://www.w3.org/TR/trace-context/), in a frame of its own before that of the call, to peers that know of
//! it. Which ids a span has is known to whoever exports it: set a [`Propagator`] once, in the program's beginning. Without
//! one nothing is sent. A call that is moved to another connection after it was queued, which is rare, arrives without its
//! parent.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::str::FromStr;
use std::sync::OnceLock;

use keydispatch_core::{ClusterName, NodeName, ServiceId, ServiceInfo, Slot};
use tracing::field::{Empty, display};
use tracing::{Instrument as _, Span};

use crate::call::CallError;

const SYSTEM: &str = "keydispatch";

static PROPAGATOR: OnceLock<Box<dyn Propagator>> = OnceLock::new();

tokio::task_local! {
    /// How often the call that this task waits for was sent.
    static ATTEMPTS: Cell<u32>;
}

/// The ids of a span, as they cross processes: `traceparent` of W3C Trace Context, version 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
}

/// A `traceparent` that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a traceparent is `00-`, 32 and 16 hexadecimal digits that are not all 0, and 2 more: `00-<trace>-<span>-<flags>`"
)]
pub struct TraceParentError;

impl TraceParent {
    /// Bytes of one on the wire.
    pub(crate) const BYTES: usize = 25;

    /// From a trace's and a span's id, neither of which is 0. Of the flags the lowest bit says that the trace is sampled.
    ///
    /// # Errors
    ///
    /// Where one of the ids is 0.
    pub fn new(trace_id: [u8; 16], span_id: [u8; 8], flags: u8) -> Result<Self, TraceParentError> {
        if trace_id == [0; 16] || span_id == [0; 8] {
            return Err(TraceParentError);
        }
        Ok(TraceParent {
            trace_id,
            span_id,
            flags,
        })
    }

    /// The trace's id.
    #[must_use]
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// The span's id.
    #[must_use]
    pub fn span_id(&self) -> [u8; 8] {
        self.span_id
    }

    /// The flags: the lowest bit says that the trace is sampled.
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.flags
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.trace_id);
        bytes[16..24].copy_from_slice(&self.span_id);
        bytes[24] = self.flags;
        bytes
    }

    /// None for what is no traceparent.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (trace_id, rest) = bytes.split_first_chunk()?;
        let (span_id, rest) = rest.split_first_chunk()?;
        TraceParent::new(*trace_id, *span_id, *rest.first()?).ok()
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (
            u128::from_be_bytes(self.trace_id),
            u64::from_be_bytes(self.span_id),
        );
        write!(f, "00-{trace:032x}-{span:016x}-{:02x}", self.flags)
    }
}

impl FromStr for TraceParent {
    type Err = TraceParentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_hex = |part: &str, digits| {
            part.len() == digits && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let parts: Vec<&str> = text.split('-').collect();
        let [version, trace, span, flags] = parts[..] else {
            return Err(TraceParentError);
        };
        if version != "00" || !is_hex(trace, 32) || !is_hex(span, 16) || !is_hex(flags, 2) {
            return Err(TraceParentError);
        }
        let trace = u128::from_str_radix(trace, 16).map_err(|_| TraceParentError)?;
        let span = u64::from_str_radix(span, 16).map_err(|_| TraceParentError)?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_| TraceParentError)?;
        TraceParent::new(trace.to_be_bytes(), span.to_be_bytes(), flags)
    }
}

/// Knows which ids a span has where it is exported, and makes a span a child of one elsewhere: what
/// `tracing-opentelemetry` does by `OpenTelemetrySpanExt::context` and `set_parent`.
///
/// Both are called on the paths of calls and may not block.
pub trait Propagator: Send + Sync + 'static {
    /// The ids of a span of this process; none where it is not exported.
    fn parent_of(&self, span: &Span) -> Option<TraceParent>;

    /// That span, which was just made, is a child of this one of another process.
    fn continue_from(&self, span: &Span, parent: TraceParent);
}

/// A propagator was set before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this process has a propagator already; it is set once")]
pub struct PropagatorSet;

/// Sets how spans of calls cross nodes, for all nodes of this process.
///
/// # Errors
///
/// Where one was set before.
pub fn set_propagator(propagator: impl Propagator) -> Result<(), PropagatorSet> {
    PROPAGATOR
        .set(Box::new(propagator))
        .map_err(|_| PropagatorSet)
}

/// The span of a call; none where nobody listens.
pub(crate) fn call(
    service_type: &'static str,
    method: &'static str,
    slot: Option<Slot>,
) -> Option<Span> {
    let span = tracing::debug_span!(
        target: "keydispatch::call",
        "call",
        otel.kind = "client",
        rpc.system = SYSTEM,
        rpc.service = service_type,
        rpc.method = method,
        keydispatch.slot = Empty,
        keydispatch.instance = Empty,
        keydispatch.node = Empty,
        keydispatch.attempt = Empty,
        error.type = Empty,
        otel.status_code = Empty,
    );
    if span.is_disabled() {
        return None;
    }
    if let Some(slot) = slot {
        span.record("keydispatch.slot", slot.index() as u64);
    }
    Some(span)
}

/// A call within its span.
pub(crate) async fn within<T>(
    span: Span,
    call: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let call = ATTEMPTS.scope(Cell::new(0), call);
    let result = call.instrument(span.clone()).await;
    if let Err(error) = &result {
        span.record("error.type", error.kind());
        span.record("otel.status_code", "ERROR");
    }
    result
}

/// What crosses to a handler of this process, or to another node: an attempt of the call that this task waits for goes to
/// that instance. None where nobody listens.
pub(crate) fn attempt(info: &ServiceInfo) -> Option<Box<Span>> {
    if !tracing::enabled!(target: "keydispatch::call", tracing::Level::DEBUG) {
        return None;
    }
    let attempt = ATTEMPTS.try_with(|attempts| {
        attempts.set(attempts.get().saturating_add(1));
        attempts.get()
    });
    let span = Span::current();
    if span.is_disabled() {
        return None;
    }
    if let Ok(attempt) = attempt {
        span.record("keydispatch.attempt", attempt);
        span.record("keydispatch.instance", display(info.id()));
        span.record("keydispatch.node", display(&info.id().node));
    }
    Some(Box::new(span))
}

/// The same for another node.
pub(crate) fn attempt_elsewhere(info: &ServiceInfo) -> Option<TraceParent> {
    let span = attempt(info)?;
    PROPAGATOR.get()?.parent_of(&span)
}

/// Whose child the span of a handler is.
pub(crate) enum Parent {
    /// A call of this node.
    Here(Option<Box<Span>>),
    /// One of another node.
    Elsewhere {
        caller: NodeName,
        parent: Option<TraceParent>,
    },
}

impl Parent {
    /// Casts say nothing of spans.
    pub(crate) fn of_cast(caller: Option<&NodeName>) -> Self {
        match caller {
            Some(caller) => Parent::Elsewhere {
                caller: caller.clone(),
                parent: None,
            },
            None => Parent::Here(None),
        }
    }
}

/// The span of a handler, disabled where nobody listens.
pub(crate) fn handle(
    service_type: &'static str,
    method: &'static str,
    id: &ServiceId,
    parent: impl FnOnce() -> Parent,
) -> Span {
    if !tracing::enabled!(target: "keydispatch::service", tracing::Level::DEBUG) {
        return Span::none();
    }
    let parent = parent();
    let above = match &parent {
        Parent::Here(Some(span)) => span.id(),
        _ => None,
    };
    let span = tracing::debug_span!(
        target: "keydispatch::service",
        parent: above,
        "handle",
        otel.kind = "server",
        rpc.system = SYSTEM,
        rpc.service = service_type,
        rpc.method = method,
        keydispatch.instance = %id,
        keydispatch.caller = Empty,
    );
    if let Parent::Elsewhere { caller, parent } = parent {
        span.record("keydispatch.caller", display(caller));
        if let (Some(parent), Some(propagator)) = (parent, PROPAGATOR.get()) {
            propagator.continue_from(&span, parent);
        }
    }
    span
}

/// The span of the task that owns a node's state.
pub(crate) fn node(name: &NodeName, cluster: &ClusterName) -> Span {
    tracing::debug_span!(
        target: "keydispatch::node",
        "node",
        keydispatch.node = %name,
        keydispatch.cluster = %cluster,
    )
}

/// The span of one control connection, whose peer is recorded once it has said who it is.
pub(crate) fn link(number: u64) -> Span {
    tracing::debug_span!(
        target: "keydispatch::node",
        "link",
        keydispatch.link = number,
        keydispatch.peer = Empty,
    )
}

/// True where the spans of handlers are listened to, and may have parents on other nodes.
pub(crate) fn is_heard() -> bool {
    PROPAGATOR.get().is_some()
        && tracing::enabled!(target: "keydispatch::service", tracing::Level::DEBUG)
}

/// A handler within its span.
pub(crate) async fn handled<T>(span: Span, handler: impl Future<Output = T>) -> T {
    if span.is_disabled() {
        handler.await
    } else {
        Box::pin(handler.instrument(span)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_as_it_is_written() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent: TraceParent = text.parse().unwrap();
        assert_eq!(parent.to_string(), text);
        assert_eq!(TraceParent::from_bytes(&parent.to_bytes()), Some(parent));
        assert_eq!(parent.flags(), 1);
        assert_eq!(parent.span_id()[0], 0xb7);
        assert_eq!(parent.trace_id()[15], 0x9c);
    }

    #[test]
    fn what_is_no_traceparent_is_refused() {
        for text in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        ] {
            assert_eq!(text.parse::<TraceParent>(), Err(TraceParentError), "{text}");
        }
        assert_eq!(TraceParent::from_bytes(&[1; 24]), None);
        assert_eq!(TraceParent::from_bytes(&[0; 25]), None);
    }
}
