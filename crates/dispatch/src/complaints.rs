//! What was complained about lately, so that a peer that does the same again and again is logged once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The same complaint is logged this often.
const INTERVAL: Duration = Duration::from_secs(60);

/// Complaints remembered for that; beyond them nothing is logged until one is old.
const MAX_REMEMBERED: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    made: Mutex<HashMap<(String, String), Instant>>,
}

impl Complaints {
    /// True where that is to be logged about that peer now.
    pub(crate) fn is_news(&self, about: &str, why: &str) -> bool {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        made.retain(|_, at| now.duration_since(*at) < INTERVAL);
        let complaint = (about.to_owned(), why.to_owned());
        if made.contains_key(&complaint) || made.len() >= MAX_REMEMBERED {
            return false;
        }
        made.insert(complaint, now);
        true
    }
}

/// The host of an address with a port: a peer that dials again has another port.
pub(crate) fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_complaint_is_news_once_and_few_are_remembered() {
        let complaints = Complaints::default();
        assert!(complaints.is_news(host("10.0.0.1:4000"), "why"));
        assert!(!complaints.is_news(host("10.0.0.1:4001"), "why"));
        assert!(complaints.is_news(host("10.0.0.1:4001"), "another"));
        assert!(complaints.is_news(host("[::1]:4001"), "why"));
        for number in 0..2 * MAX_REMEMBERED {
            complaints.is_news("flood", &number.to_string());
        }
        assert!(!complaints.is_news("flood", "one more"));
    }
}
