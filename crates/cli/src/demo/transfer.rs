//! Files on their way to their owners and back: so many at once, and so many bytes of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keydispatch::{CallOptions, ServiceHandle, Spread};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::clock::PATIENCE;
use super::files::{self, Collection, Reason, Skipped, Source};
use super::progress::Progress;
use super::uploader::{Ask, Told, Upload, Uploads, checksum};

/// Every file is kept by so many owners.
pub(crate) const COPIES: usize = 2;

/// Files on their way at once: enough that nobody waits for the network.
const IN_FLIGHT: usize = 64;

/// Content on its way at once, in KiB: a few of the largest files.
const IN_FLIGHT_KIB: usize = 64 * 1024;

/// A file is sent so often before it counts as lost: casts arrive at most once.
const ATTEMPTS: usize = 5;

/// Shortest and longest pause before a full queue is tried again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// A file that both owners have, and what it has to be when it comes back.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    checksum: u128,
}

impl Stored {
    /// A file of that name and content.
    pub(crate) fn of(name: &str, content: &[u8]) -> Self {
        Stored {
            name: name.to_owned(),
            bytes: content.len() as u64,
            checksum: checksum(content),
        }
    }

    /// Whether that is what was stored.
    pub(crate) fn is(&self, content: &[u8]) -> bool {
        checksum(content) == self.checksum
    }
}

/// A file that is not there, and why.
#[derive(Clone, Debug)]
pub(crate) struct Lost {
    pub(crate) name: String,
    pub(crate) why: String,
}

/// What became of a step over all files.
#[derive(Debug, Default)]
pub(crate) struct Transferred {
    pub(crate) stored: Vec<Stored>,
    pub(crate) lost: Vec<Lost>,
    pub(crate) skipped: Skipped,
    pub(crate) took: Duration,
}

impl Transferred {
    /// Files per second that arrived.
    pub(crate) fn rate(&self) -> f64 {
        self.stored.len() as f64 / self.took.as_secs_f64().max(1e-6)
    }
}

enum Outcome {
    Stored(Stored),
    Skipped(Reason),
    Lost(Lost),
}

impl Transferred {
    fn note(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Stored(stored) => self.stored.push(stored),
            Outcome::Skipped(reason) => self.skipped.add(reason, 1),
            Outcome::Lost(lost) => self.lost.push(lost),
        }
    }
}

/// Uploads each file to its first two owners on distinct nodes, and checks both copies before it counts.
pub(crate) async fn upload(
    uploaders: &ServiceHandle<Uploads>,
    collection: &Collection,
    progress: &Progress,
) -> Transferred {
    let options = CallOptions::new().timeout(PATIENCE).spread(Spread::Nodes);
    let uploaders = uploaders.with(options);
    let started = Instant::now();
    let mut transferred = Transferred::default();
    let jobs = collection.sources.iter().map(|source| {
        let (uploaders, root) = (uploaders.clone(), collection.root.clone());
        let source = source.clone();
        (source.bytes, async move {
            let reading = source.clone();
            let read = tokio::task::spawn_blocking(move || files::read(&root, &reading)).await;
            match read {
                Ok(Ok(content)) => upload_one(&uploaders, &source, content).await,
                Ok(Err(reason)) => Outcome::Skipped(reason),
                Err(_) => Outcome::Skipped(Reason::Unreadable),
            }
        })
    });
    bounded(jobs, |outcome| {
        transferred.note(outcome);
        progress.step();
    })
    .await;
    transferred.took = started.elapsed();
    transferred
}

async fn upload_one(
    uploaders: &ServiceHandle<Uploads>,
    source: &Source,
    content: bytes::Bytes,
) -> Outcome {
    let stored = Stored::of(&source.name, &content);
    let upload = Upload {
        name: source.name.clone(),
        content,
    };
    let mut why = String::new();
    for _ in 0..ATTEMPTS {
        if let Err(error) = send(uploaders, &upload).await {
            why = error;
            continue;
        }
        match check(uploaders, &stored).await {
            Ok(()) => return Outcome::Stored(stored),
            Err(error) => why = error,
        }
    }
    Outcome::Lost(Lost {
        name: stored.name,
        why,
    })
}

/// Sends a file until both owners' queues have taken it: a full one makes the sender wait, and loses nothing.
async fn send(uploaders: &ServiceHandle<Uploads>, upload: &Upload) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = PAUSE.0;
    loop {
        let accepted = uploaders.multi_cast(upload.name.as_str(), COPIES, upload.clone());
        if accepted >= COPIES {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(format!(
                "{accepted} of {COPIES} owners took it within {PATIENCE:?}"
            ));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Asks both owners what they have. The question follows the file on the same connection, so it is there if it ever is.
async fn check(uploaders: &ServiceHandle<Uploads>, stored: &Stored) -> Result<(), String> {
    let ask = Ask::Checksum(stored.name.clone());
    let copies = uploaders
        .multi_call(stored.name.as_str(), COPIES, ask)
        .await;
    let mut nodes = Vec::with_capacity(COPIES);
    for (info, told) in copies {
        match told {
            Ok(Told::Checksum(sum)) if sum == stored.checksum => nodes.push(info.node().clone()),
            Ok(told) => return Err(format!("{} has {told:?}", info.node())),
            Err(error) => return Err(error.to_string()),
        }
    }
    nodes.dedup();
    if nodes.len() == COPIES {
        return Ok(());
    }
    Err(format!("{} nodes of {COPIES} have it", nodes.len()))
}

/// Reads each file back from whoever owns it now.
pub(crate) async fn read_back(
    uploaders: &ServiceHandle<Uploads>,
    files: &[Stored],
    progress: &Progress,
) -> Transferred {
    // Reading twice does no harm.
    let uploaders = uploaders.with(CallOptions::new().timeout(PATIENCE).idempotent());
    let started = Instant::now();
    let mut transferred = Transferred::default();
    let jobs = files.iter().map(|stored| {
        let (uploaders, stored) = (uploaders.clone(), stored.clone());
        (stored.bytes, async move {
            match read_one(&uploaders, &stored).await {
                Ok(()) => Outcome::Stored(stored),
                Err(why) => Outcome::Lost(Lost {
                    name: stored.name,
                    why,
                }),
            }
        })
    });
    bounded(jobs, |outcome| {
        transferred.note(outcome);
        progress.step();
    })
    .await;
    transferred.took = started.elapsed();
    transferred
}

async fn read_one(uploaders: &ServiceHandle<Uploads>, stored: &Stored) -> Result<(), String> {
    let ask = Ask::Content(stored.name.clone());
    match uploaders.call(stored.name.as_str(), ask).await {
        Ok(Told::Content(content)) if checksum(&content) == stored.checksum => Ok(()),
        Ok(Told::Content(content)) => Err(format!(
            "{} other bytes came back instead of {}",
            content.len(),
            stored.bytes
        )),
        Ok(_) => Err("its owner does not have it".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Runs jobs, each beside the bytes that it carries, within the bounds above.
pub(crate) async fn bounded<J, T>(jobs: impl Iterator<Item = (u64, J)>, mut done: impl FnMut(T))
where
    J: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let room = Arc::new(Semaphore::new(IN_FLIGHT_KIB));
    let mut running = JoinSet::new();
    let mut finish = |result: Result<T, tokio::task::JoinError>| match result {
        Ok(outcome) => done(outcome),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Only dropping the set cancels its tasks.
        Err(_) => {}
    };
    for (bytes, job) in jobs {
        while running.len() >= IN_FLIGHT
            && let Some(result) = running.join_next().await
        {
            finish(result);
        }
        let kib = usize::try_from(bytes / 1024 + 1)
            .unwrap_or(IN_FLIGHT_KIB)
            .min(IN_FLIGHT_KIB);
        // Jobs give their room back without help, so nobody has to be joined meanwhile. It is never closed.
        let permit = Arc::clone(&room)
            .acquire_many_owned(u32::try_from(kib).unwrap_or(u32::MAX))
            .await
            .ok();
        running.spawn(async move {
            let outcome = job.await;
            drop(permit);
            outcome
        });
    }
    while let Some(result) = running.join_next().await {
        finish(result);
    }
}
