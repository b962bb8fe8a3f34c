//! How states travel between nodes: beside calls, so that large ones keep no probe waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use keydispatch_core::NodeId;
use tokio::sync::mpsc;

use super::mailbox::letter::States;

/// Messages about states that wait for the driver, and bytes of them; what comes beyond that is dropped, and sent again by its
/// sender, half a second later. A peer has at most 256 small ones, or two megabytes, on their way: room for 60 peers at once.
const MAX_WAITING: usize = 16_384;
const MAX_WAITING_BYTES: usize = 128 * 1024 * 1024;

/// Messages handled before what they lead to is sent.
const BATCH: usize = 32;

/// What services and connections tell the driver of the states of keys.
pub(crate) enum TokenInput {
    /// A message of a peer.
    Message { from: NodeId, message: Bytes },
    /// The states of a slot that was to be given; none where one of them cannot be.
    Given {
        transfer: u64,
        states: Option<States>,
    },
}

/// The way to the driver.
#[derive(Clone, Debug)]
pub(crate) struct TokenInputs {
    messages: mpsc::Sender<TokenInput>,
    /// Of those that wait.
    bytes: Arc<AtomicUsize>,
    given: mpsc::UnboundedSender<TokenInput>,
}

/// Its end there.
pub(crate) struct TokenReceivers {
    messages: mpsc::Receiver<TokenInput>,
    bytes: Arc<AtomicUsize>,
    given: mpsc::UnboundedReceiver<TokenInput>,
}

impl TokenInputs {
    pub(crate) fn new() -> (Self, TokenReceivers) {
        let (messages, message_receiver) = mpsc::channel(MAX_WAITING);
        // Each is asked for by the driver, a few at a time.
        let (given, given_receiver) = mpsc::unbounded_channel();
        let bytes: Arc<AtomicUsize> = Arc::default();
        (
            TokenInputs {
                messages,
                bytes: Arc::clone(&bytes),
                given,
            },
            TokenReceivers {
                messages: message_receiver,
                bytes,
                given: given_receiver,
            },
        )
    }
}

impl TokenInputs {
    /// A peer has sent one.
    pub(super) fn take(&self, from: &NodeId, message: Bytes) {
        let (waiting, bytes) = (&self.bytes, message.len());
        let input = TokenInput::Message {
            from: from.clone(),
            message,
        };
        // Rule: what is not taken is sent again. An honest peer has a few on their way, and waits for the answer.
        if waiting.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_WAITING_BYTES
            || self.messages.try_send(input).is_err()
        {
            waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// The states of a slot that was to be given.
    pub(crate) fn given(&self, transfer: u64, states: Option<States>) {
        // The driver is gone only when the node is.
        let _ = self.given.send(TokenInput::Given { transfer, states });
    }
}

impl TokenReceivers {
    /// Waits for something to be there, and takes some of it. Whoever stops waiting has lost nothing.
    pub(crate) async fn receive(&mut self, into: &mut Vec<TokenInput>) {
        let first = tokio::select! {
            Some(message) = self.messages.recv() => self.taken(message),
            Some(given) = self.given.recv() => given,
            else => std::future::pending().await,
        };
        into.push(first);
        while let Ok(given) = self.given.try_recv() {
            into.push(given);
        }
        // What is given is small in number; messages come as fast as peers send.
        while into.len() < BATCH
            && let Ok(message) = self.messages.try_recv()
        {
            let message = self.taken(message);
            into.push(message);
        }
    }

    fn taken(&self, message: TokenInput) -> TokenInput {
        if let TokenInput::Message { message, .. } = &message {
            self.bytes.fetch_sub(message.len(), Ordering::Relaxed);
        }
        message
    }
}
