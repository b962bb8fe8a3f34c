//! What checks in a row amount to: `rise` and `fall`, and what is known of an endpoint before its first check.

use std::time::{Duration, SystemTime};

use super::definition::Check;
use super::probe::Seen;

/// Whether an endpoint is well, as far as its check says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was not checked yet, so that nobody calls what may not be there.
    Unknown,
    Passing,
    Failing(String),
}

/// The history of one check.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    pub(crate) verdict: Verdict,
    pub(crate) last: Option<(SystemTime, Seen, Duration)>,
    /// Of the kind of the last one, how many in a row.
    row: u32,
    pub(crate) passes: u64,
    pub(crate) failures: u64,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            verdict: Verdict::Unknown,
            last: None,
            row: 0,
            passes: 0,
            failures: 0,
        }
    }
}

impl Health {
    /// Of an endpoint that is known so far as this.
    pub(crate) fn starting_as(verdict: Verdict) -> Self {
        Health {
            verdict,
            ..Health::default()
        }
    }

    /// Takes what a check saw.
    ///
    /// Rule: the first pass of all brings it online. From then on `fall` failures in a row take it offline, and `rise` passes
    /// in a row bring it back, so that one lost packet moves no keys.
    pub(crate) fn take(&mut self, check: &Check, seen: Seen, took: Duration) {
        let same = self
            .last
            .as_ref()
            .is_some_and(|(_, last, _)| last.passed == seen.passed);
        self.row = if same { self.row.saturating_add(1) } else { 1 };
        if seen.passed {
            self.passes += 1;
            let enough = match &self.verdict {
                Verdict::Unknown => self.passes == 1,
                Verdict::Failing(_) => self.row >= check.rise,
                Verdict::Passing => true,
            };
            if enough {
                self.verdict = Verdict::Passing;
            }
        } else {
            self.failures += 1;
            let why = format!("{} \u{d7}{}", seen.brief, self.row);
            match &mut self.verdict {
                Verdict::Failing(reason) if self.row <= check.fall => *reason = why,
                // The number stands still: a reason that changes with each check would be a change for all nodes.
                Verdict::Failing(_) => {}
                verdict if self.row >= check.fall => *verdict = Verdict::Failing(why),
                _ => {}
            }
        }
        self.last = Some((SystemTime::now(), seen, took));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::definition::Probe;

    fn check() -> Check {
        Check {
            probe: Probe::Ttl(Duration::from_secs(1)),
            every: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        }
    }

    /// `+` passes, `-` fails; the states after each.
    fn after(history: &str) -> String {
        let mut health = Health::default();
        history
            .chars()
            .map(|c| {
                let seen = if c == '+' {
                    Seen::passed("http 200")
                } else {
                    Seen::failed("http 503")
                };
                health.take(&check(), seen, Duration::ZERO);
                match &health.verdict {
                    Verdict::Unknown => '?',
                    Verdict::Passing => 'P',
                    Verdict::Failing(_) => 'F',
                }
            })
            .collect()
    }

    #[test]
    fn one_pass_at_first_then_fall_in_a_row_and_rise_in_a_row() {
        for (history, states) in [
            ("+", "P"),
            ("--+", "??P"),
            ("---+", "??FF"),
            ("---++", "??FFP"),
            ("+--+--+---", "PPPPPPPPPF"),
            ("+---+-++", "PPPFFFFP"),
        ] {
            assert_eq!(after(history), states, "{history}");
        }
    }

    #[test]
    fn a_reason_says_how_many_and_stands_still() {
        let mut health = Health::default();
        for _ in 0..10 {
            health.take(&check(), Seen::failed("http 503"), Duration::ZERO);
        }
        assert_eq!(
            health.verdict,
            Verdict::Failing("http 503 \u{d7}3".to_owned())
        );
    }
}
