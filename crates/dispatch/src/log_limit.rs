//! How often faults of others are logged, so that whoever does the same again and again is logged once.
//!
//! Rule: limits are per source. One that sends nonsense of many kinds fills its own share, and mutes nobody else; the line
//! that follows says how many were left out.

use std::collections::HashMap;

use std::time::{Duration, Instant};

use crate::mutex::Mutex;
use crate::transport::doorstep::source;

/// The same fault is logged this often.
const INTERVAL: Duration = Duration::from_secs(60);

/// Different faults of one source in that time.
const MAX_OF_ONE_SOURCE: usize = 8;

/// Sources remembered; beyond them the one that was quiet for longest is forgotten, and may be logged again.
const MAX_SOURCES: usize = 1_024;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    sources: Mutex<HashMap<String, Source>>,
}

#[derive(Debug)]
struct Source {
    made: HashMap<String, Instant>,
    suppressed: u64,
    last: Instant,
}

/// Something that is to be logged now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LogNow {
    /// LogLimit about that source that were not logged since the last one that was; none rather than zero.
    pub(crate) suppressed: Option<u64>,
}

impl LogLimit {
    /// Some where that is to be logged about that source now.
    pub(crate) fn should_log(&self, about: &str, why: &str) -> Option<LogNow> {
        self.should_log_at(Instant::now(), about, why)
    }

    fn should_log_at(&self, now: Instant, about: &str, why: &str) -> Option<LogNow> {
        let mut sources = self.sources.lock();
        if sources.len() >= MAX_SOURCES && !sources.contains_key(about) {
            let quietest = sources.iter().min_by_key(|(_, source)| source.last);
            if let Some(name) = quietest.map(|(name, _)| name.clone()) {
                sources.remove(&name);
            }
        }
        let source = sources.entry(about.to_owned()).or_insert_with(|| Source {
            made: HashMap::new(),
            suppressed: 0,
            last: now,
        });
        source.last = now;
        source
            .made
            .retain(|_, at| now.duration_since(*at) < INTERVAL);
        if source.made.contains_key(why) || source.made.len() >= MAX_OF_ONE_SOURCE {
            source.suppressed += 1;
            return None;
        }
        source.made.insert(why.to_owned(), now);
        let suppressed = std::mem::take(&mut source.suppressed);
        Some(LogNow {
            suppressed: (suppressed > 0).then_some(suppressed),
        })
    }
}

/// Whose a fault of a peer at an address with a port is: a peer that dials again has another port, and one with
/// IPv6 may have another address of its network.
pub(crate) fn host(address: &str) -> String {
    if let Ok(address) = address.parse::<std::net::SocketAddr>() {
        return source(address.ip()).to_string();
    }
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Option<LogNow> = Some(LogNow { suppressed: None });

    #[test]
    fn the_same_fault_is_logged_once_in_a_while_and_says_what_was_left_out() {
        let limit = LogLimit::default();
        let start = Instant::now();
        let (here, again) = (host("10.0.0.1:4000"), host("10.0.0.1:4001"));
        assert_eq!(limit.should_log_at(start, &here, "why"), FIRST);
        for _ in 0..5 {
            assert_eq!(limit.should_log_at(start, &again, "why"), None);
        }
        let suppressed = Some(5);
        assert_eq!(
            limit.should_log_at(start, &again, "another"),
            Some(LogNow { suppressed })
        );
        assert_eq!(limit.should_log_at(start + INTERVAL, &again, "why"), FIRST);
    }

    #[test]
    fn one_source_mutes_no_other() {
        let limit = LogLimit::default();
        let start = Instant::now();
        let logged = |about: &str, count: usize| {
            (0..count)
                .filter(|number| {
                    limit
                        .should_log_at(start, about, &number.to_string())
                        .is_some()
                })
                .count()
        };
        assert_eq!(logged("flood", 10_000), MAX_OF_ONE_SOURCE);
        assert_eq!(logged("other", 1), 1);
        for number in 0..3 * MAX_SOURCES {
            logged(&format!("source {number}"), 1);
        }
        assert_eq!(logged("another", 1), 1);
        assert_eq!(limit.sources.lock().len(), MAX_SOURCES);
    }

    #[test]
    fn a_host_is_one_source_whatever_its_port() {
        assert_eq!(host("10.0.0.1:4000"), "10.0.0.1");
        assert_eq!(host("[2001:db8::1]:4000"), host("[2001:db8::2]:1"));
        assert_eq!(host("db.example:4000"), "db.example");
        assert_eq!(host("memory"), "memory");
    }
}
