//! Services that are started again when they end by a panic, with back-off and a limit, as OTP does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use keydispatch_core::ServiceId;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::registry::entry::RegistryError;
use crate::service::host::Host;
use crate::service::options::ServeOptions;
use crate::service::serve::{ServeError, Served, StopError, serve};
use crate::service::{Ended, Service};

/// Most restarts that are remembered, 1 MiB of them. Whoever allows more is never given up.
const MAX_REMEMBERED: usize = 65_536;

/// How a service is restarted; see [`Node::supervise`](crate::Node::supervise).
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct SuperviseOptions {
    serve: ServeOptions,
    max_restarts: usize,
    within: Duration,
    first_pause: Duration,
    longest_pause: Duration,
}

impl Default for SuperviseOptions {
    fn default() -> Self {
        SuperviseOptions {
            serve: ServeOptions::new(),
            max_restarts: 3,
            within: Duration::from_secs(5),
            first_pause: Duration::from_millis(10),
            longest_pause: Duration::from_secs(1),
        }
    }
}

impl SuperviseOptions {
    /// At most 3 restarts within 5 s, after pauses of 10 ms that double up to 1 s.
    pub fn new() -> Self {
        Self::default()
    }

    /// How each instance is served.
    pub fn serve(mut self, options: ServeOptions) -> Self {
        self.serve = options;
        self
    }

    /// Gives up where the service would be restarted more than so many times within that time. More than 65,536 times is
    /// never.
    pub fn intensity(mut self, max_restarts: usize, within: Duration) -> Self {
        self.max_restarts = max_restarts;
        self.within = within;
        self
    }

    /// The pause before the first restart in a row, and the longest: each is twice the one before.
    pub fn back_off(mut self, first: Duration, longest: Duration) -> Self {
        self.first_pause = first;
        self.longest_pause = longest;
        self
    }
}

/// How a supervised service came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SupervisedEnd {
    /// It was stopped, or its node was.
    Stopped,
    /// It panicked, or failed to start, too often.
    GaveUp {
        /// The restarts that were made within the time that counts.
        restarts: usize,
    },
}

/// A service that is started again when it panics. It keeps its instance name, and so its keys.
///
/// Dropping it changes nothing: the service runs on, supervised.
#[derive(Debug)]
pub struct Supervised {
    /// The instance that runs, or ran last.
    running: Arc<ArcSwap<ServiceId>>,
    stop: watch::Sender<bool>,
    end: watch::Receiver<Option<SupervisedEnd>>,
}

impl Supervised {
    /// Stops the service, and returns when it has stopped.
    ///
    /// # Errors
    ///
    /// From the service's own handler, at once and with nothing done; see [`Served::stop`].
    pub async fn stop(&self) -> Result<SupervisedEnd, StopError> {
        StopError::check(&self.running.load())?;
        self.stop.send_replace(true);
        Ok(self.ended().await)
    }

    /// Waits until it is not started again any more, and says why.
    pub async fn ended(&self) -> SupervisedEnd {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(SupervisedEnd::Stopped),
            Err(_) => SupervisedEnd::Stopped,
        }
    }
}

/// Starts a service, and sees to it that it runs. The first start fails as that of any service does.
pub(crate) async fn supervise<S: Service>(
    host: Host,
    options: SuperviseOptions,
    mut factory: impl FnMut() -> S + Send + 'static,
) -> Result<Supervised, ServeError> {
    let first = serve(&host, options.serve.clone(), factory()).await?;
    let (stop, stopped) = watch::channel(false);
    let (end_sender, end) = watch::channel(None);
    let running = Arc::new(ArcSwap::from_pointee(first.id().clone()));
    // The name of the first is kept, whatever ordinals are free by then.
    let name = first.info().name().as_str().to_owned();
    let serve_options = options.serve.clone().name(name);
    let supervisor = Supervisor {
        options,
        serve_options,
        host: host.clone(),
        stopped,
        running: Arc::clone(&running),
        restarts: VecDeque::new(),
    };
    host.local.spawn_service(async move {
        let end = supervisor.run(first, factory).await;
        end_sender.send_replace(Some(end));
    });
    Ok(Supervised { running, stop, end })
}

struct Supervisor {
    options: SuperviseOptions,
    serve_options: ServeOptions,
    host: Host,
    stopped: watch::Receiver<bool>,
    running: Arc<ArcSwap<ServiceId>>,
    /// When it was restarted, as far back as counts.
    restarts: VecDeque<Instant>,
}

impl Supervisor {
    async fn run<S: Service>(
        mut self,
        first: Served<S::Protocol>,
        mut factory: impl FnMut() -> S + Send + 'static,
    ) -> SupervisedEnd {
        let mut served = Some(first);
        loop {
            if let Some(running) = served.take() {
                let mut stopped = self.stopped.clone();
                let ended = tokio::select! {
                    ended = running.ended() => Some(ended),
                    () = asked(&mut stopped) => None,
                };
                if ended.is_none() {
                    // The supervisor is no handler.
                    let _ = running.stop().await;
                }
                if ended != Some(Ended::Panicked) {
                    return SupervisedEnd::Stopped;
                }
            }
            let Some(pause) = self.next_pause() else {
                let restarts = self.restarts.len();
                tracing::error!(
                    restarts,
                    "a service fails again and again, and is not restarted"
                );
                return SupervisedEnd::GaveUp { restarts };
            };
            let mut stopped = self.stopped.clone();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = asked(&mut stopped) => return SupervisedEnd::Stopped,
            }
            let options = self.serve_options.clone();
            match serve(&self.host, options, factory()).await {
                Ok(again) => {
                    self.running.store(Arc::new(again.id().clone()));
                    served = Some(again);
                }
                Err(ServeError::Registry(RegistryError::NodeStopped)) => {
                    return SupervisedEnd::Stopped;
                }
                Err(error) => tracing::warn!(%error, "a service did not start again"),
            }
        }
    }

    /// The pause before the next restart; none where there were too many.
    fn next_pause(&mut self) -> Option<Duration> {
        let now = Instant::now();
        while self
            .restarts
            .front()
            .is_some_and(|at| now.duration_since(*at) > self.options.within)
        {
            self.restarts.pop_front();
        }
        if self.restarts.len() >= self.options.max_restarts {
            return None;
        }
        let doublings = u32::try_from(self.restarts.len())
            .unwrap_or(u32::MAX)
            .min(20);
        if self.restarts.len() >= MAX_REMEMBERED {
            self.restarts.pop_front();
        }
        self.restarts.push_back(now);
        let pause = self.options.first_pause.saturating_mul(1 << doublings);
        Some(pause.min(self.options.longest_pause))
    }
}

/// Waits until the service is to be stopped for good; dropping its handle does not ask for that.
async fn asked(stopped: &mut watch::Receiver<bool>) {
    if stopped.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
