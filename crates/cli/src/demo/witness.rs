//! What each node says of its own view: who owns a key, and when it saw a service come or go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use keydispatch::{
    Context, NameError, NewService, Protocol, Registration, Registry, ReplyTo, Service,
    ServiceEvent, View,
};
use serde::{Deserialize, Serialize};

use super::clock;
use super::uploader::Uploads;

/// The type of the endpoints that are registered to see how soon they show.
const PROBE: &str = "probe";

pub(crate) struct Witnesses;

impl Protocol for Witnesses {
    const NAME: &'static str = "witness";
    type Call = Question;
    type Reply = Testimony;
    type Cast = ();
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Question {
    /// The nodes that own these keys.
    Owners(Vec<String>),
    /// Register a probe of that name, and say when that was done.
    Register(String),
    /// Remove it again.
    Remove(String),
    /// When the probe of that name showed.
    ProbeSeen(String),
    /// When the uploader of that name was gone.
    UploaderGone(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Testimony {
    /// In the order of the keys; none where nobody owns it.
    Owners(Vec<Option<String>>),
    /// In microseconds of the clock that all share; none where it has not happened.
    At(Option<u64>),
    /// Why it could not be done.
    Failed(String),
}

pub(crate) struct Witness {
    registry: Registry,
    probes: Log,
    uploaders: Log,
    registered: HashMap<String, Registration>,
}

impl Witness {
    /// Watches from now on.
    pub(crate) fn start(registry: &Registry) -> Result<Self, NameError> {
        Ok(Witness {
            registry: registry.clone(),
            probes: Log::keep(registry, PROBE)?,
            uploaders: Log::keep(registry, Uploads::NAME)?,
            registered: HashMap::new(),
        })
    }

    pub(crate) async fn answer(&mut self, question: Question) -> Testimony {
        match question {
            Question::Owners(keys) => Testimony::Owners(self.owners(&keys)),
            Question::Register(name) => {
                let probe = NewService::endpoint(PROBE, "nowhere").name(name.clone());
                match self.registry.add_service(probe).await {
                    Ok(registration) => {
                        let at = clock::micros();
                        self.registered.insert(name, registration);
                        Testimony::At(Some(at))
                    }
                    Err(error) => Testimony::Failed(error.to_string()),
                }
            }
            Question::Remove(name) => {
                if let Some(registration) = self.registered.remove(&name)
                    && let Err(error) = registration.remove().await
                {
                    return Testimony::Failed(error.to_string());
                }
                Testimony::At(Some(clock::micros()))
            }
            Question::ProbeSeen(name) => Testimony::At(self.probes.came(&name)),
            Question::UploaderGone(name) => Testimony::At(self.uploaders.went(&name)),
        }
    }

    fn owners(&self, keys: &[String]) -> Vec<Option<String>> {
        let view = self.registry.view(Uploads::NAME);
        keys.iter()
            .map(|key| {
                let owner = view.as_ref()?.owner(key.as_str())?;
                Some(owner.node().to_string())
            })
            .collect()
    }
}

impl Service for Witness {
    type Protocol = Witnesses;

    async fn handle_call(
        &mut self,
        question: Question,
        reply_to: ReplyTo<Testimony>,
        _: &mut Context<Self>,
    ) {
        reply_to.reply(self.answer(question).await);
    }
}

/// When each service of one type came and went, by instance name, as this process's registry told.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Times>>);

#[derive(Default)]
struct Times {
    came: HashMap<String, u64>,
    went: HashMap<String, u64>,
}

impl Log {
    fn keep(registry: &Registry, service_type: &str) -> Result<Log, NameError> {
        let mut events = registry.subscribe(service_type)?;
        let log = Log::default();
        let kept = log.clone();
        // Ends with the node, as the subscription does.
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                kept.note(clock::micros(), event);
            }
        });
        Ok(log)
    }

    fn note(&self, at: u64, event: ServiceEvent) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            ServiceEvent::Joined(info) => times.join(at, info.name().as_str()),
            ServiceEvent::Left(info) => times.leave(at, info.name().as_str()),
            ServiceEvent::Current(view) => times.catch_up(at, &view),
            _ => {}
        }
    }

    fn came(&self, name: &str) -> Option<u64> {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.came.get(name).copied()
    }

    fn went(&self, name: &str) -> Option<u64> {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.went.get(name).copied()
    }
}

impl Times {
    fn join(&mut self, at: u64, name: &str) {
        self.went.remove(name);
        self.came.insert(name.to_owned(), at);
    }

    fn leave(&mut self, at: u64, name: &str) {
        self.went.insert(name.to_owned(), at);
    }

    /// At first, and after events were missed.
    fn catch_up(&mut self, at: u64, view: &View) {
        let listed: Vec<&str> = view
            .services()
            .iter()
            .map(|info| info.name().as_str())
            .collect();
        for name in &listed {
            if !self.came.contains_key(*name) || self.went.contains_key(*name) {
                self.join(at, name);
            }
        }
        let gone: Vec<String> = self
            .came
            .keys()
            .filter(|name| !listed.contains(&name.as_str()) && !self.went.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            self.leave(at, &name);
        }
    }
}
