//! The figures of a run, as one JSON object, and how they read.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use indicatif::{HumanBytes, HumanCount};
use serde::{Serialize, Serializer};

use super::files::Skipped;

/// The figures of a run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Node processes.
    pub(crate) nodes: usize,
    /// Files that were uploaded, or should have been.
    pub(crate) files: usize,
    /// What they hold, once each.
    pub(crate) bytes: u64,
    /// What was left out; a directory counts once.
    pub(crate) skipped: u64,
    pub(crate) skipped_by: Skipped,
    /// Files that were not uploaded, or did not come back as they were: before or after the death.
    pub(crate) lost: usize,
    /// Keys whose owner is another one after the death, in the survivors' answers.
    pub(crate) moved: usize,
    /// Those of them that were not the dead node's.
    pub(crate) moved_from_live_nodes: usize,
    /// Keys of which two nodes named different owners, before or after.
    pub(crate) disagreed: usize,
    /// From a registration's return on one node to its showing on the last of the others: the median of some.
    #[serde(serialize_with = "rounded")]
    pub(crate) visible_ms: f64,
    /// The slowest of them.
    #[serde(serialize_with = "rounded")]
    pub(crate) visible_ms_max: f64,
    /// From the SIGKILL until the last survivor had dropped the dead node's uploader.
    #[serde(serialize_with = "rounded")]
    pub(crate) detect_ms: f64,
    /// The same of each survivor.
    pub(crate) detect_ms_by_node: BTreeMap<&'static str, f64>,
    /// Files per second, each at two owners and both copies checked.
    #[serde(serialize_with = "rounded")]
    pub(crate) uploads_per_s: f64,
    /// Files per second that were read back.
    #[serde(serialize_with = "rounded")]
    pub(crate) calls_per_s: f64,
    pub(crate) killed: &'static str,
    pub(crate) spread: Vec<Share>,
}

/// What one node has.
#[derive(Debug, Serialize)]
pub(crate) struct Share {
    pub(crate) node: &'static str,
    /// Keys that it owns.
    pub(crate) owns: usize,
    /// Files that it keeps, as first or second owner.
    pub(crate) keeps: u64,
    /// What they hold.
    pub(crate) kept_bytes: u64,
}

impl Report {
    /// True where nothing was lost, and nothing moved that should have stayed.
    pub(crate) fn is_good(&self) -> bool {
        self.lost == 0 && self.moved_from_live_nodes == 0 && self.disagreed == 0
    }
}

/// Microseconds are all that was measured.
fn rounded<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(round(*value))
}

pub(crate) fn round(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

/// A count of something: "1 file", "2,345 files".
pub(crate) struct Count(pub(crate) usize, pub(crate) &'static str);

impl Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        write!(f, "{} {}{plural}", HumanCount(self.0 as u64), self.1)
    }
}

impl Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} owns {} and keeps {} ({})",
            self.node,
            Count(self.owns, "key"),
            Count(usize::try_from(self.keeps).unwrap_or(usize::MAX), "file"),
            HumanBytes(self.kept_bytes)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_the_promised_fields() {
        let json = serde_json::to_value(Report::default()).unwrap();
        for field in [
            "nodes",
            "files",
            "bytes",
            "skipped",
            "lost",
            "moved",
            "moved_from_live_nodes",
            "visible_ms",
            "detect_ms",
            "uploads_per_s",
            "calls_per_s",
        ] {
            assert!(json[field].is_number(), "{field}");
        }
    }

    #[test]
    fn a_lost_file_or_a_key_that_moved_wrongly_is_no_good() {
        assert!(Report::default().is_good());
        for bad in [
            Report {
                lost: 1,
                ..Report::default()
            },
            Report {
                moved_from_live_nodes: 1,
                ..Report::default()
            },
            Report {
                disagreed: 1,
                ..Report::default()
            },
        ] {
            assert!(!bad.is_good());
        }
    }

    #[test]
    fn counts_read_as_people_write_them() {
        assert_eq!(Count(1, "file").to_string(), "1 file");
        assert_eq!(Count(2_345, "file").to_string(), "2,345 files");
    }
}
