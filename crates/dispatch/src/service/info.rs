//! A service's private messages: what its own tasks tell it, and what never leaves the process.

use std::fmt;

use std::time::Duration;

use tokio::sync::mpsc;

use super::Service;
use super::context::{Context, Handling, InfoTurn, Infos, OwnMessage, Timer};
use crate::mutex::Mutex;

/// A service that also takes private messages, which nobody else can send and which need not be serialisable.
///
/// Tasks that the service has spawned send them with the handle that [`Context::info_sender`] gives; the service itself
/// with [`Context::info`] and [`Context::info_after`].
///
/// ```
/// use keydispatch::{Context, HandleInfo, Protocol, ReplyTo, Service};
/// # struct Pages;
/// # impl Protocol for Pages {
/// #     const NAME: &'static str = "pages";
/// #     type Call = String; type Reply = String; type Cast = ();
/// # }
/// # async fn download(url: &str) -> String { url.to_owned() }
/// #[derive(Default)]
/// struct Fetcher;
///
/// /// A page has come, and is for whoever asked.
/// struct Fetched(ReplyTo<String>, String);
///
/// impl Service for Fetcher {
///     type Protocol = Pages;
///
///     async fn handle_call(&mut self, url: String, reply_to: ReplyTo<String>, cx: &mut Context<Self>) {
///         let me = cx.info_sender();
///         tokio::spawn(async move {
///             let page = download(&url).await;
///             let _ = me.send(Fetched(reply_to, page)).await; // an error says that the service has ended
///         });
///     }
/// }
///
/// impl HandleInfo for Fetcher {
///     type Info = Fetched;
///
///     async fn handle_info(&mut self, Fetched(reply_to, page): Fetched, _: &mut Context<Self>) {
///         reply_to.reply(page);
///     }
/// }
/// ```
pub trait HandleInfo: Service {
    /// What it is told.
    type Info: Send + 'static;

    /// A private message. It takes turns with calls, casts and the service's casts to itself.
    fn handle_info(
        &mut self,
        info: Self::Info,
        cx: &mut Context<Self>,
    ) -> impl Future<Output = ()> + Send;
}

/// Sends private messages to one service, from anywhere in its process; see [`HandleInfo`]. Cheap to clone.
///
/// It does not keep the service alive.
pub struct InfoSender<S: HandleInfo> {
    sender: mpsc::Sender<Box<dyn InfoTurn<S>>>,
}

/// Why a private message was not sent. It gives the message back.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InfoError<I> {
    /// As many as the service's mailbox holds are waiting.
    #[error("a private message was not sent: as many are waiting as the mailbox holds")]
    Full(I),
    /// The service has ended.
    #[error("a private message was not sent: the service has ended")]
    Ended(I),
}

impl<I> InfoError<I> {
    /// The message.
    pub fn into_info(self) -> I {
        match self {
            InfoError::Full(info) | InfoError::Ended(info) => info,
        }
    }
}

/// As it is read: messages need not be printable.
impl<I> fmt::Debug for InfoError<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<S: HandleInfo> InfoSender<S> {
    /// Sends a message, and waits for room where as many as the mailbox holds are waiting. Cancelling the wait drops the
    /// message.
    ///
    /// Not for the service's own handler, which would wait for itself: [`Context::info`] is.
    ///
    /// # Errors
    ///
    /// [`InfoError::Ended`].
    pub async fn send(&self, info: S::Info) -> Result<(), InfoError<S::Info>> {
        match self.sender.reserve().await {
            Ok(permit) => {
                permit.send(turn(info));
                Ok(())
            }
            Err(_) => Err(InfoError::Ended(info)),
        }
    }

    /// Sends a message where there is room for it.
    ///
    /// # Errors
    ///
    /// [`InfoError::Full`], [`InfoError::Ended`].
    pub fn try_send(&self, info: S::Info) -> Result<(), InfoError<S::Info>> {
        match self.sender.try_reserve() {
            Ok(permit) => {
                permit.send(turn(info));
                Ok(())
            }
            Err(mpsc::error::TrySendError::Full(())) => Err(InfoError::Full(info)),
            Err(mpsc::error::TrySendError::Closed(())) => Err(InfoError::Ended(info)),
        }
    }

    /// Waits until the service has ended: what its tasks do for it may end, too.
    pub async fn ended(&self) {
        self.sender.closed().await;
    }
}

impl<S: HandleInfo> Clone for InfoSender<S> {
    fn clone(&self) -> Self {
        InfoSender {
            sender: self.sender.clone(),
        }
    }
}

impl<S: HandleInfo> fmt::Debug for InfoSender<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InfoSender").finish_non_exhaustive()
    }
}

/// Behind a lock that nobody waits for: a message need not be shareable, and a [`Context`] that holds some is.
struct Told<S: HandleInfo>(Mutex<S::Info>);

impl<S: HandleInfo> InfoTurn<S> for Told<S> {
    fn handle<'a>(self: Box<Self>, service: &'a mut S, cx: &'a mut Context<S>) -> Handling<'a> {
        let info = self.0.into_inner();
        Box::pin(service.handle_info(info, cx))
    }
}

fn turn<S: HandleInfo>(info: S::Info) -> Box<dyn InfoTurn<S>> {
    Box::new(Told::<S>(Mutex::new(info)))
}

impl<S: HandleInfo> Infos<S> {
    pub(super) fn sender(&self) -> InfoSender<S> {
        InfoSender {
            sender: self.sender.clone(),
        }
    }
}

impl<S: Service> Context<S> {
    /// Sends a private message to this service itself, as [`cast`](Self::cast) does.
    pub fn info(&mut self, info: S::Info)
    where
        S: HandleInfo,
    {
        self.own.push_back(OwnMessage::Info(turn(info)));
    }

    /// Sends a private message to this service itself after a while, as [`cast_after`](Self::cast_after) does.
    pub fn info_after(&mut self, after: Duration, info: S::Info) -> Timer
    where
        S: HandleInfo,
    {
        self.after(after, OwnMessage::Info(turn(info)))
    }

    /// How the tasks that this service spawns send it private messages; as many may wait as its mailbox holds.
    pub fn info_sender(&mut self) -> InfoSender<S>
    where
        S: HandleInfo,
    {
        let capacity = self.capacity;
        self.infos
            .get_or_insert_with(|| Infos::new(capacity))
            .sender()
    }
}
