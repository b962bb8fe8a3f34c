//! What is called.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use keydispatch::{
    BoxError, Context, KeyBytes, KeyContext, Keyed, KeyedHandle, Protocol, ReplyTo, Service,
    ServiceHandle,
};
use tokio::sync::{mpsc, oneshot};

use super::echo;
use keydispatch_fleet::Error;

/// Bytes that come back.
pub struct Echoes;

impl Protocol for Echoes {
    const NAME: &'static str = "echo";
    type Call = Bytes;
    type Reply = Bytes;
    type Cast = ();
}

/// Answers with what it is sent.
pub struct Echo;

impl Service for Echo {
    type Protocol = Echoes;

    async fn handle_call(&mut self, call: Bytes, reply_to: ReplyTo<Bytes>, _: &mut Context<Self>) {
        reply_to.reply(call);
    }
}

/// Bytes that come back, for each key.
pub struct KeyedEchoes;

impl Protocol for KeyedEchoes {
    const NAME: &'static str = "keyed echo";
    type Call = Bytes;
    type Reply = Bytes;
    type Cast = ();
}

/// Answers each key with what it is sent.
pub struct KeyedEcho;

impl Keyed for KeyedEcho {
    type Protocol = KeyedEchoes;
    type State = ();

    async fn open(&self, _: &KeyBytes) -> Result<(), BoxError> {
        Ok(())
    }

    async fn handle_call(
        &self,
        (): &mut (),
        call: Bytes,
        reply_to: ReplyTo<Bytes>,
        _: &mut KeyContext<Self>,
    ) {
        reply_to.reply(call);
    }
}

/// Three that echo.
pub(super) struct Trio;

impl Protocol for Trio {
    const NAME: &'static str = "trio";
    type Call = Bytes;
    type Reply = Bytes;
    type Cast = ();
}

pub(super) struct OneOfThree;

impl Service for OneOfThree {
    type Protocol = Trio;

    async fn handle_call(&mut self, call: Bytes, reply_to: ReplyTo<Bytes>, _: &mut Context<Self>) {
        reply_to.reply(call);
    }
}

/// Counts casts.
pub(super) struct Tally;

impl Protocol for Tally {
    const NAME: &'static str = "tally";
    type Call = ();
    type Reply = u64;
    type Cast = Bytes;
}

#[derive(Default)]
pub(super) struct Counting(u64);

impl Service for Counting {
    type Protocol = Tally;

    async fn handle_call(&mut self, _: (), reply_to: ReplyTo<u64>, _: &mut Context<Self>) {
        reply_to.reply(self.0);
    }

    async fn handle_cast(&mut self, _: Bytes, _: &mut Context<Self>) {
        self.0 += 1;
    }
}

/// Casts between two calls: a sender that never waits would only fill the mailbox.
pub(super) const CASTS: u32 = 32;

/// The least that a call to a task can cost: a bounded channel there, a oneshot back.
#[derive(Clone)]
pub struct Bare {
    sender: mpsc::Sender<(Bytes, oneshot::Sender<Bytes>)>,
}

impl Bare {
    pub(super) fn start() -> Self {
        let (sender, mut receiver) = mpsc::channel::<(Bytes, oneshot::Sender<Bytes>)>(1_024);
        tokio::spawn(async move {
            while let Some((message, reply)) = receiver.recv().await {
                // The caller may have gone.
                let _ = reply.send(message);
            }
        });
        Bare { sender }
    }
}

/// See the module.
#[derive(Clone)]
pub enum Subject {
    /// The plain TLS echo.
    Echo(echo::Client),
    /// A service.
    Call(ServiceHandle<Echoes>),
    /// The first three owners at once.
    #[expect(private_interfaces, reason = "made here alone")]
    Multi(ServiceHandle<Trio>),
    /// Casts, with a call behind them.
    #[expect(private_interfaces, reason = "made here alone")]
    Cast(ServiceHandle<Tally>),
    /// A task behind a channel.
    Bare(Bare),
    /// A key with a state, another one each time.
    Keyed(KeyedHandle<KeyedEchoes>, Arc<AtomicU64>),
}

/// Keys that are called in turn.
const KEYS: u64 = 4_096;

impl Subject {
    /// One call.
    pub(crate) async fn call(&self, message: &Bytes) -> Result<(), Error> {
        const KEY: u64 = 7;
        let message = message.clone();
        match self {
            Subject::Echo(client) => {
                client.call(message).await?;
            }
            Subject::Call(handle) => {
                handle.call(KEY, message).await?;
            }
            Subject::Multi(handle) => {
                for (_, reply) in handle.multi_call(KEY, 3, message).await {
                    reply?;
                }
            }
            Subject::Cast(handle) => {
                for _ in 0..CASTS {
                    handle
                        .cast(KEY, message.clone())
                        .map_err(|refused| refused.error)?;
                }
                handle.call(KEY, ()).await?;
            }
            Subject::Keyed(handle, next) => {
                let key = next.fetch_add(1, Ordering::Relaxed) % KEYS;
                handle.call(key, message).await?;
            }
            Subject::Bare(bare) => {
                let (reply, answer) = oneshot::channel();
                bare.sender.send((message, reply)).await?;
                answer.await?;
            }
        }
        Ok(())
    }
}
