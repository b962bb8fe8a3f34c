//! How long the calls of a handle take: when another owner is to be asked beside the first.

use std::time::Duration;

/// Buckets of an octave: each is 9 % longer than the one before.
const PARTS: u32 = 8;

/// Octaves of microseconds: up to nineteen hours.
const OCTAVES: u32 = 36;

const BUCKETS: usize = (PARTS * OCTAVES) as usize;

/// Calls of a window. The one before it counts, too, so that a new one does not begin with nothing.
const WINDOW: u32 = 1_000;

/// Calls below which nothing is known.
const FEW: u32 = 100;

/// The latencies of the last one or two thousand calls.
///
/// Rule: a hedge is sent after the handle's own 95th percentile, so that at most about one call in twenty has one. After a time
/// that somebody chose, every call has one on the day on which the service is slower than that.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// Of this window, and of the one before.
    counts: [Vec<u32>; 2],
    calls: [u32; 2],
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies {
            counts: [vec![0; BUCKETS], vec![0; BUCKETS]],
            calls: [0; 2],
        }
    }
}

impl Latencies {
    /// A call took so long.
    pub fn record(&mut self, latency: Duration) {
        if self.calls[0] >= WINDOW {
            self.counts.swap(0, 1);
            self.counts[0].fill(0);
            self.calls = [0, self.calls[0]];
        }
        self.counts[0][bucket(latency)] += 1;
        self.calls[0] += 1;
    }

    /// The 95th percentile, rounded up to the next bucket; none while fewer than a hundred calls are known.
    pub fn p95(&self) -> Option<Duration> {
        let all = self.calls[0] + self.calls[1];
        if all < FEW {
            return None;
        }
        let mut left = all - all / 20;
        let counts = self.counts[0].iter().zip(&self.counts[1]);
        for (at, (now, before)) in counts.enumerate() {
            let both = now + before;
            if both >= left {
                return Some(end(at));
            }
            left -= both;
        }
        None
    }
}

/// The bucket of a latency.
fn bucket(latency: Duration) -> usize {
    let micros = latency.as_micros().clamp(1, (1 << OCTAVES) - 1) as u64;
    let octave = micros.ilog2();
    // The three bits behind the first.
    let part = (micros << 3 >> octave) & u64::from(PARTS - 1);
    (octave * PARTS) as usize + part as usize
}

/// The latency that a bucket ends with.
fn end(bucket: usize) -> Duration {
    let (octave, part) = (bucket / PARTS as usize, bucket % PARTS as usize);
    let micros = (u64::from(PARTS) + part as u64 + 1) << octave >> 3;
    Duration::from_micros(micros.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_right_to_an_eighth() {
        let mut latencies = Latencies::default();
        for micros in 1..=99 {
            latencies.record(Duration::from_micros(micros * 100));
        }
        assert_eq!(latencies.p95(), None);
        latencies.record(Duration::from_millis(10));
        let p95 = latencies.p95().unwrap();
        assert!(
            (9_500..=9_500 * 9 / 8).contains(&(p95.as_micros() as u64)),
            "{p95:?}"
        );
    }

    #[test]
    fn what_was_two_windows_ago_is_forgotten() {
        let mut latencies = Latencies::default();
        for _ in 0..WINDOW {
            latencies.record(Duration::from_secs(1));
        }
        for _ in 0..2 * WINDOW {
            latencies.record(Duration::from_millis(1));
        }
        assert!(latencies.p95().unwrap() < Duration::from_millis(2));
    }

    #[test]
    fn every_latency_has_a_bucket_that_ends_behind_it() {
        for shift in 0..60 {
            for micros in [1_u64 << shift, (1 << shift) + (1 << shift) / 3] {
                let latency = Duration::from_micros(micros);
                let end = end(bucket(latency));
                assert!(
                    end >= latency || micros >= 1 << OCTAVES,
                    "{latency:?} {end:?}"
                );
            }
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert_eq!(bucket(Duration::ZERO), 0);
    }
}
