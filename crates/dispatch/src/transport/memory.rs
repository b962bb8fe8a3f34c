//! An in-process network whose links can be cut, for tests. Every byte is encoded as it is on a real one.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, MutexGuard, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use keydispatch_core::admission::Credentials;
use keydispatch_core::message::{Address, Frame};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

mod pipe;

use self::pipe::{Ends, Pipe};
use crate::mutex::Mutex;
use crate::transport::framing::Framed;
use crate::transport::metered::{Metered, Received};
use crate::transport::{
    AcceptError, BindError, BoxFuture, Connection, ConnectionError, DIAL_TIMEOUT, DialError,
    Transport,
};

/// Connections that wait to be accepted; more dials wait, as with a socket's backlog.
const BACKLOG: usize = 1_024;

/// A network inside one process, whose links can be cut, healed and reset.
///
/// Nodes are named by the addresses that they are bound to, `a:1` or any other text; a port of 0 takes a free one. Cheap
/// to clone; all clones are the same network. What is cut behaves as a cable that was pulled: bytes stall, dials time
/// out, and nobody is told. When it is healed within the patience of both sides, what was held arrives, as TCP would
/// resend it.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use keydispatch::{Node, testkit::MemoryNetwork};
///
/// let network = MemoryNetwork::new();
/// let a = Node::builder("a").memory(&network).bind("a:1").start().await?;
/// let b = Node::builder("b").memory(&network).bind("b:1").seeds(["a:1"]).start().await?;
/// network.cut("a:1", "b:1");
/// // Each takes the other for dead within its `down_period`.
/// network.heal("a:1", "b:1");
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    inner: Arc<NetworkInner>,
}

struct NetworkInner {
    state: Mutex<NetworkState>,
    /// Counts changes of the rules, for the dials that wait.
    changes: watch::Sender<u64>,
}

impl Default for NetworkInner {
    fn default() -> Self {
        NetworkInner {
            state: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }
}

#[derive(Default)]
struct NetworkState {
    listeners: HashMap<String, mpsc::Sender<MemoryConnection>>,
    /// The last one that matches holds.
    rules: Vec<Rule>,
    pipes: Vec<Weak<Pipe>>,
    last_port: u16,
}

/// Whether packets pass from one address to another; none stands for every other one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    from: Option<String>,
    to: Option<String>,
    cut: bool,
}

impl Rule {
    fn matches(&self, from: &str, to: &str) -> bool {
        let is = |name: &Option<String>, other: &str| name.as_deref().is_none_or(|n| n == other);
        from != to && is(&self.from, from) && is(&self.to, to)
    }
}

impl NetworkState {
    fn is_cut(&self, from: &str, to: &str) -> bool {
        let last = self.rules.iter().rev().find(|rule| rule.matches(from, to));
        last.is_some_and(|rule| rule.cut)
    }

    fn add_rule(&mut self, from: Option<&str>, to: Option<&str>, cut: bool) {
        let (from, to) = (from.map(str::to_owned), to.map(str::to_owned));
        self.rules
            .retain(|rule| (&rule.from, &rule.to) != (&from, &to));
        self.rules.push(Rule { from, to, cut });
    }

    /// The open pipes; those that ended are forgotten.
    fn pipes(&mut self) -> Vec<Arc<Pipe>> {
        let pipes: Vec<_> = self.pipes.iter().filter_map(Weak::upgrade).collect();
        self.pipes = pipes.iter().map(Arc::downgrade).collect();
        pipes
    }

    fn pipe(&mut self, from: &str, to: &str) -> Arc<Pipe> {
        let pipe = Pipe::new(from, to, self.is_cut(from, to));
        if self.pipes.len() == self.pipes.capacity() {
            self.pipes.retain(|pipe| pipe.strong_count() > 0);
        }
        self.pipes.push(Arc::downgrade(&pipe));
        pipe
    }
}

impl MemoryNetwork {
    /// A network that nobody is bound to yet.
    pub fn new() -> Self {
        MemoryNetwork::default()
    }

    /// Stops packets between two addresses, both ways.
    pub fn cut(&self, a: &str, b: &str) {
        self.change(|state| {
            state.add_rule(Some(a), Some(b), true);
            state.add_rule(Some(b), Some(a), true);
        });
    }

    /// Stops packets in one direction; those the other way still pass. Nobody can dial without both.
    pub fn cut_one_way(&self, from: &str, to: &str) {
        self.change(|state| state.add_rule(Some(from), Some(to), true));
    }

    /// Lets packets pass between two addresses, both ways, also where one of them is isolated.
    pub fn heal(&self, a: &str, b: &str) {
        self.change(|state| {
            state.add_rule(Some(a), Some(b), false);
            state.add_rule(Some(b), Some(a), false);
        });
    }

    /// Lets all packets pass.
    pub fn heal_all(&self) {
        self.change(|state| state.rules.clear());
    }

    /// Stops packets between an address and all others, also those that are bound later.
    pub fn isolate(&self, a: &str) {
        self.change(|state| {
            state.add_rule(Some(a), None, true);
            state.add_rule(None, Some(a), true);
        });
    }

    /// Breaks every connection between two addresses now; both sides are told, and may dial again.
    pub fn reset(&self, a: &str, b: &str) {
        for pipe in self.inner.lock().pipes() {
            if (pipe.from == a && pipe.to == b) || (pipe.from == b && pipe.to == a) {
                pipe.reset();
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut NetworkState)) {
        let mut state = self.inner.lock();
        change(&mut state);
        for pipe in state.pipes() {
            pipe.set_cut(state.is_cut(&pipe.from, &pipe.to));
        }
        drop(state);
        self.inner.changes.send_modify(|changes| *changes += 1);
    }

    /// Listens at an address until the transport is dropped; its connections last as long as they are held.
    pub(crate) fn bind(&self, address: &str) -> Result<Arc<dyn Transport>, BindError> {
        let mut state = self.inner.lock();
        let mut address = address.to_owned();
        while let Some(host) = address.strip_suffix(":0") {
            state.last_port = state.last_port.wrapping_add(1).max(1);
            let numbered = format!("{host}:{}", state.last_port);
            if !state.listeners.contains_key(&numbered) {
                address = numbered;
            }
        }
        let local = Address::try_new(&address).map_err(|error| BindError::Unusable {
            address: address.clone(),
            source: io::Error::new(io::ErrorKind::InvalidInput, error),
        })?;
        if state.listeners.contains_key(&address) {
            return Err(BindError::Taken { address });
        }
        let (sender, accepted) = mpsc::channel(BACKLOG);
        state.listeners.insert(address, sender);
        Ok(Arc::new(MemoryTransport {
            inner: Arc::clone(&self.inner),
            local,
            accepted: tokio::sync::Mutex::new(accepted),
        }))
    }
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.inner.lock();
        f.debug_struct("MemoryNetwork")
            .field("bound", &state.listeners.keys())
            .field("rules", &state.rules)
            .finish_non_exhaustive()
    }
}

impl NetworkInner {
    fn lock(&self) -> MutexGuard<'_, NetworkState> {
        self.state.lock()
    }
}

struct MemoryTransport {
    inner: Arc<NetworkInner>,
    local: Address,
    accepted: tokio::sync::Mutex<mpsc::Receiver<MemoryConnection>>,
}

impl MemoryTransport {
    async fn connect(&self, address: &Address) -> Result<MemoryConnection, DialError> {
        let (near, far) = (self.local.as_str(), address.as_str());
        let refused = || DialError::Refused {
            address: address.clone(),
        };
        let mut changes = self.inner.changes.subscribe();
        let listener = loop {
            {
                let state = self.inner.lock();
                if !state.is_cut(near, far) && !state.is_cut(far, near) {
                    break state.listeners.get(far).cloned().ok_or_else(refused)?;
                }
            }
            // The network is held by `self`, so that this ends only by the caller's timeout.
            let _ = changes.changed().await;
        };
        let slot = listener.reserve().await.map_err(|_| refused())?;
        let (there, back) = {
            let mut state = self.inner.lock();
            (state.pipe(near, far), state.pipe(far, near))
        };
        slot.send(MemoryConnection::new(near, &there, &back));
        Ok(MemoryConnection::new(far, &back, &there))
    }
}

impl Transport for MemoryTransport {
    fn local_address(&self) -> Address {
        self.local.clone()
    }

    fn dial<'a>(
        &'a self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn Connection>, DialError>> {
        Box::pin(async move {
            match timeout(DIAL_TIMEOUT, self.connect(address)).await {
                Ok(outcome) => Ok(Box::new(outcome?) as Box<dyn Connection>),
                Err(_) => Err(DialError::TimedOut {
                    address: address.clone(),
                    waited: DIAL_TIMEOUT,
                }),
            }
        })
    }

    fn unbind(&self) -> BoxFuture<'_, ()> {
        self.inner.lock().listeners.remove(self.local.as_str());
        Box::pin(std::future::ready(()))
    }

    fn accept(&self) -> BoxFuture<'_, Result<Box<dyn Connection>, AcceptError>> {
        Box::pin(async move {
            let accepted = self.accepted.lock().await.recv().await;
            // The network holds the other end for as long as this transport lives.
            let connection = accepted.ok_or_else(|| AcceptError {
                why: "the network is gone".to_owned(),
            })?;
            Ok(Box::new(connection) as Box<dyn Connection>)
        })
    }
}

impl fmt::Debug for MemoryTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTransport")
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.inner.lock().listeners.remove(self.local.as_str());
    }
}

struct MemoryConnection {
    framed: Framed<Metered<Ends>>,
    received: Received,
    opened: tokio::time::Instant,
    peer: String,
}

impl MemoryConnection {
    fn new(peer: &str, incoming: &Arc<Pipe>, outgoing: &Arc<Pipe>) -> Self {
        let received = Received::default();
        let ends = Ends::new(incoming, outgoing);
        MemoryConnection {
            framed: Framed::new(Metered::new(ends, &received)),
            received,
            opened: tokio::time::Instant::now(),
            peer: peer.to_owned(),
        }
    }
}

impl Connection for MemoryConnection {
    fn credentials(&self) -> &Credentials {
        &Credentials::Unchecked
    }

    fn peer(&self) -> &str {
        &self.peer
    }

    fn opened(&self) -> tokio::time::Instant {
        self.opened
    }

    fn set_frame_limit(&mut self, bytes: usize) {
        self.framed.set_frame_limit(bytes);
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, ConnectionError>>> {
        self.framed.poll_frame(cx)
    }

    fn meter(&self) -> &Received {
        &self.received
    }

    fn send_with(&mut self, frame: Frame, rest: Bytes) {
        self.framed.send(frame, rest);
    }

    fn buffered(&self) -> usize {
        self.framed.buffered()
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        self.framed.poll_flush(cx).map_err(ConnectionError::from)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::pipe::PIPE_BYTES;
    use super::*;
    use crate::transport::tests::{connect, exchange, frame, next, send};

    /// Long enough for everything that is on its way, under a clock that does not wait.
    async fn settle() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    async fn is_silent(connection: &mut dyn Connection) -> bool {
        settle().await;
        poll_fn(|cx| Poll::Ready(connection.poll_frame(cx).is_pending())).await
    }

    fn pair() -> (MemoryNetwork, Arc<dyn Transport>, Arc<dyn Transport>) {
        let network = MemoryNetwork::new();
        let a = network.bind("a:1").unwrap();
        let b = network.bind("b:1").unwrap();
        (network, a, b)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_over_a_cut_link_arrives_when_it_is_healed() {
        let (network, a, b) = pair();
        let (mut near, mut far) = connect(&*a, &*b).await;
        network.cut("b:1", "a:1");
        send(&mut *near, frame(1, 10)).await;
        send(&mut *far, frame(2, 10)).await;
        assert!(is_silent(&mut *far).await);
        assert!(is_silent(&mut *near).await);
        network.heal("a:1", "b:1");
        assert_eq!(next(&mut *far).await.unwrap().unwrap(), frame(1, 10));
        assert_eq!(next(&mut *near).await.unwrap().unwrap(), frame(2, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_one_way_cut_lets_the_other_way_pass() {
        let (network, a, b) = pair();
        let (mut near, mut far) = connect(&*a, &*b).await;
        network.cut_one_way("a:1", "b:1");
        send(&mut *near, frame(1, 10)).await;
        assert!(is_silent(&mut *far).await);
        send(&mut *far, frame(2, 10)).await;
        assert_eq!(next(&mut *near).await.unwrap().unwrap(), frame(2, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_connection_is_not_seen_through_a_cut() {
        let (network, a, b) = pair();
        let (near, mut far) = connect(&*a, &*b).await;
        network.isolate("a:1");
        drop(near);
        assert!(is_silent(&mut *far).await);
        network.heal_all();
        assert!(next(&mut *far).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_waits_once_a_cut_link_has_taken_its_fill() {
        let (network, a, b) = pair();
        let (mut near, mut far) = connect(&*a, &*b).await;
        far.set_frame_limit(1 << 20);
        network.cut("a:1", "b:1");
        near.send(frame(1, 2 * PIPE_BYTES));
        let pending = poll_fn(|cx| Poll::Ready(near.poll_flush(cx).is_pending())).await;
        assert!(pending && near.buffered() > 0);
        network.heal_all();
        let flush = poll_fn(|cx| near.poll_flush(cx));
        let (flushed, received) = tokio::join!(flush, next(&mut *far));
        flushed.unwrap();
        assert_eq!(received.unwrap().unwrap(), frame(1, 2 * PIPE_BYTES));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dial_over_a_cut_link_times_out() {
        let (network, a, b) = pair();
        network.cut_one_way("b:1", "a:1");
        let error = a.dial(&b.local_address()).await.err().unwrap();
        assert!(matches!(error, DialError::TimedOut { .. }), "{error}");
        assert!(error.to_string().contains("b:1"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dial_goes_through_when_the_link_is_healed_in_time() {
        let (network, a, b) = pair();
        network.isolate("b:1");
        let heal = async {
            tokio::time::sleep(DIAL_TIMEOUT / 2).await;
            network.heal("a:1", "b:1");
        };
        let ((mut near, mut far), ()) = tokio::join!(connect(&*a, &*b), heal);
        exchange(&mut *near, &mut *far).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_isolated_node_reaches_nobody_and_itself() {
        let (network, a, b) = pair();
        network.isolate("a:1");
        let later = network.bind("c:1").unwrap();
        assert!(later.dial(&a.local_address()).await.is_err());
        assert!(a.dial(&a.local_address()).await.is_ok());
        assert!(later.dial(&b.local_address()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_breaks_the_connections_of_that_pair_alone() {
        let (network, a, b) = pair();
        let c = network.bind("c:1").unwrap();
        let (mut near, mut far) = connect(&*a, &*b).await;
        let (mut other, mut third) = connect(&*a, &*c).await;
        network.reset("b:1", "a:1");
        for side in [&mut near, &mut far] {
            let error = next(&mut **side).await.unwrap().unwrap_err();
            assert!(matches!(error, ConnectionError::Io(_)), "{error}");
        }
        exchange(&mut *other, &mut *third).await;
        let (mut near, mut far) = connect(&*a, &*b).await;
        exchange(&mut *near, &mut *far).await;
    }

    #[tokio::test]
    async fn an_address_is_free_again_once_its_transport_is_dropped() {
        let network = MemoryNetwork::new();
        let first = network.bind("a:1").unwrap();
        let error = network.bind("a:1").unwrap_err();
        assert!(matches!(error, BindError::Taken { .. }), "{error}");
        drop(first);
        assert!(network.bind("a:1").is_ok());
        let any = network.bind("a:0").unwrap().local_address();
        assert!(!any.as_str().ends_with(":0"), "{any}");
    }
}
