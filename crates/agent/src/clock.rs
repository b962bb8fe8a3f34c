//! Times as they are written: RFC 3339 in UTC with milliseconds.

use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// `2026-11-28T01:02:03.004Z`.
pub(crate) fn rfc3339(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let millis = at.millisecond();
    at.replace_millisecond(millis)
        .unwrap_or(at)
        .format(&Rfc3339)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_time_is_written_in_utc_with_milliseconds() {
        let at = UNIX_EPOCH + Duration::from_millis(1_795_827_723_004) + Duration::from_micros(7);
        assert_eq!(rfc3339(at), "2026-11-28T01:02:03.004Z");
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00Z");
    }
}
