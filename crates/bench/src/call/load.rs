//! Many callers for a while: how many calls, how long each took, and what they cost both processes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use super::subject::Subject;
use keydispatch_fleet::Error;
use keydispatch_measure::process;

/// How fast callers call.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// The next call follows the reply.
    Full,
    /// So many calls a second in all, as far as replies come in time.
    Rate(f64),
}

/// What a while of calling came to.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    calls_per_second: f64,
    p50_micros: f64,
    p99_micros: f64,
    busy_micros: f64,
    busy_here_micros: f64,
}

impl Load {
    /// Calls per second.
    pub fn rate(&self) -> f64 {
        self.calls_per_second
    }

    pub(crate) fn p50(&self) -> f64 {
        self.p50_micros
    }

    pub(crate) fn p99(&self) -> f64 {
        self.p99_micros
    }

    /// Microseconds that both processes computed for each call.
    pub(crate) fn busy(&self) -> f64 {
        self.busy_micros
    }

    /// Those of this process.
    pub(crate) fn busy_here(&self) -> f64 {
        self.busy_here_micros
    }
}

/// Lets `callers` tasks call for a while.
pub async fn load(
    subject: &Subject,
    far: u32,
    callers: usize,
    message: &Bytes,
    window: Duration,
    pace: Pace,
) -> Result<Load, Error> {
    let here = std::process::id();
    let before = (process::busy(here), process::busy(far));
    let start = Instant::now();
    let end = start + window;
    let mut tasks = JoinSet::new();
    for number in 0..callers {
        let (subject, message) = (subject.clone(), message.clone());
        tasks.spawn(async move {
            match pace {
                Pace::Full => flat_out(&subject, &message, end).await,
                Pace::Rate(rate) => {
                    let pause = Duration::from_secs_f64(callers as f64 / rate);
                    paced(&subject, &message, end, pause, number as u64).await
                }
            }
        });
    }
    let mut nanos: Vec<u64> = Vec::new();
    while let Some(done) = tasks.join_next().await {
        nanos.extend(done??);
    }
    let elapsed = start.elapsed();
    let calls = nanos.len().max(1);
    let here = process::busy(here).saturating_sub(before.0);
    let there = process::busy(far).saturating_sub(before.1);
    nanos.sort_unstable();
    let at = |fraction: f64| {
        let place = (fraction * (calls - 1) as f64) as usize;
        nanos.get(place).map_or(0.0, |nanos| *nanos as f64 / 1e3)
    };
    Ok(Load {
        calls_per_second: nanos.len() as f64 / elapsed.as_secs_f64(),
        p50_micros: at(0.5),
        p99_micros: at(0.99),
        busy_micros: (here + there).as_secs_f64() * 1e6 / calls as f64,
        busy_here_micros: here.as_secs_f64() * 1e6 / calls as f64,
    })
}

async fn flat_out(subject: &Subject, message: &Bytes, end: Instant) -> Result<Vec<u64>, Error> {
    let mut nanos = Vec::with_capacity(1_024);
    let mut start = Instant::now();
    while start < end {
        subject.call(message).await?;
        let done = Instant::now();
        nanos.push((done - start).as_nanos() as u64);
        start = done;
    }
    Ok(nanos)
}

/// Calls at moments that do not depend on the replies, unless those are late.
async fn paced(
    subject: &Subject,
    message: &Bytes,
    end: Instant,
    pause: Duration,
    seed: u64,
) -> Result<Vec<u64>, Error> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut nanos = Vec::with_capacity(1_024);
    let mut next = Instant::now() + pause.mul_f64(random.random());
    while next < end {
        tokio::time::sleep_until(next.into()).await;
        let start = Instant::now();
        subject.call(message).await?;
        nanos.push(start.elapsed().as_nanos() as u64);
        next = next.max(start.checked_sub(pause).unwrap_or(start))
            + pause.mul_f64(random.random_range(0.5..1.5));
    }
    Ok(nanos)
}
