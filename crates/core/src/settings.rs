//! Settings of the registry, validated with their relations.

use crate::error::debug_as_display;
use std::time::Duration;

/// Default `broadcast_period`.
pub const DEFAULT_BROADCAST_PERIOD: Duration = Duration::from_millis(250);
/// Default `max_silent_periods`.
pub const DEFAULT_MAX_SILENT_PERIODS: u32 = 3;
/// Default `permdown_period`.
pub const DEFAULT_PERMDOWN_PERIOD: Duration = Duration::from_secs(20 * 60);
/// Default `max_delta_sizes`.
pub const DEFAULT_MAX_DELTA_SIZES: usize = 10_000;
/// Shortest `broadcast_period`: below it, digests would cost more than the changes they guard.
pub const MIN_BROADCAST_PERIOD: Duration = Duration::from_millis(10);
/// Shortest `down_period` that may be set: a single TCP retransmission takes 200 ms, and a shorter one flaps.
pub const MIN_DOWN_PERIOD: Duration = Duration::from_millis(600);
/// Shortest `down_period` that is derived from the other periods.
pub const MIN_DERIVED_DOWN_PERIOD: Duration = Duration::from_secs(1);
/// Longest period of any kind: more than a week is taken for a mistake in the unit.
pub const MAX_PERIOD: Duration = Duration::from_secs(7 * 24 * 3600);
/// Most operations kept per owner (`max_delta_sizes`).
pub const MAX_DELTA_SIZES: usize = 1_000_000;
/// Most silent periods (`max_silent_periods`).
pub const MAX_SILENT_PERIODS: u32 = 1_000;

/// The registry's settings as asked for; what is left out takes its default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawSettings {
    /// See [`Settings::broadcast_period`].
    pub broadcast_period: Option<Duration>,
    /// See [`Settings::max_silent_periods`].
    pub max_silent_periods: Option<u32>,
    /// See [`Settings::down_period`].
    pub down_period: Option<Duration>,
    /// See [`Settings::permdown_period`].
    pub permdown_period: Option<Duration>,
    /// See [`Settings::permdown_on_shutdown`].
    pub permdown_on_shutdown: Option<bool>,
    /// See [`Settings::max_delta_sizes`].
    pub max_delta_sizes: Option<usize>,
}

/// Why settings cannot be.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A setting is outside its bounds.
    #[error("registry.{setting} is {value}; it lies between {low} and {high}")]
    OutOfBounds {
        /// Its name.
        setting: &'static str,
        /// What was asked for.
        value: String,
        /// The lower bound.
        low: String,
        /// The upper bound.
        high: String,
    },
    /// A node would be taken for dead before it could have said anything.
    #[error(
        "registry.down_period ({down:?}) must be at least twice registry.broadcast_period ({broadcast:?}): raise the first or lower the second"
    )]
    DownBelowBroadcast {
        /// `down_period`.
        down: Duration,
        /// `broadcast_period`.
        broadcast: Duration,
    },
    /// A node would be forgotten before it was taken for dead.
    #[error(
        "registry.permdown_period ({permdown:?}) must be longer than registry.down_period ({down:?}): raise the first or lower the second"
    )]
    PermdownBelowDown {
        /// `permdown_period`.
        permdown: Duration,
        /// `down_period`.
        down: Duration,
    },
}

debug_as_display!(SettingsError);

/// The registry's settings, all within bounds and in relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    broadcast_period: Duration,
    max_silent_periods: u32,
    down_period: Duration,
    permdown_period: Duration,
    permdown_on_shutdown: bool,
    max_delta_sizes: usize,
}

impl Settings {
    /// Fills in the defaults and checks bounds and relations.
    pub fn try_new(raw: RawSettings) -> Result<Self, SettingsError> {
        let broadcast_period = raw.broadcast_period.unwrap_or(DEFAULT_BROADCAST_PERIOD);
        period("broadcast_period", broadcast_period, MIN_BROADCAST_PERIOD)?;
        let max_silent_periods = raw.max_silent_periods.unwrap_or(DEFAULT_MAX_SILENT_PERIODS);
        number(
            "max_silent_periods",
            max_silent_periods as usize,
            MAX_SILENT_PERIODS as usize,
        )?;
        let down_period = match raw.down_period {
            Some(down_period) => {
                period("down_period", down_period, MIN_DOWN_PERIOD)?;
                down_period
            }
            None => (broadcast_period * max_silent_periods * 2)
                .clamp(MIN_DERIVED_DOWN_PERIOD, MAX_PERIOD),
        };
        if down_period < broadcast_period * 2 {
            return Err(SettingsError::DownBelowBroadcast {
                down: down_period,
                broadcast: broadcast_period,
            });
        }
        let permdown_period = raw.permdown_period.unwrap_or(DEFAULT_PERMDOWN_PERIOD);
        period("permdown_period", permdown_period, MIN_BROADCAST_PERIOD)?;
        if permdown_period <= down_period {
            return Err(SettingsError::PermdownBelowDown {
                permdown: permdown_period,
                down: down_period,
            });
        }
        let max_delta_sizes = raw.max_delta_sizes.unwrap_or(DEFAULT_MAX_DELTA_SIZES);
        number("max_delta_sizes", max_delta_sizes, MAX_DELTA_SIZES)?;
        Ok(Settings {
            broadcast_period,
            max_silent_periods,
            down_period,
            permdown_period,
            permdown_on_shutdown: raw.permdown_on_shutdown.unwrap_or(false),
            max_delta_sizes,
        })
    }

    /// How often versions are compared with one random peer while something changes; default 250 ms.
    ///
    /// Changes themselves go out within a millisecond: this is how soon a lost one is noticed.
    pub fn broadcast_period(&self) -> Duration {
        self.broadcast_period
    }

    /// While nothing changes, versions are compared in every so many periods only; default 3.
    pub fn max_silent_periods(&self) -> u32 {
        self.max_silent_periods
    }

    /// How long a node may be silent before the others take it for dead; default
    /// `broadcast_period` × `max_silent_periods` × 2 and at least 1 s. At least 600 ms and twice the
    /// `broadcast_period`.
    pub fn down_period(&self) -> Duration {
        self.down_period
    }

    /// How long a dead node's entries and name are remembered, should it come back; default 20 min.
    pub fn permdown_period(&self) -> Duration {
        self.permdown_period
    }

    /// Whether dropping a node without leaving says goodbye, so that its entries go at once and for good;
    /// default no: its peers then find out as they would of a crash.
    pub fn permdown_on_shutdown(&self) -> bool {
        self.permdown_on_shutdown
    }

    /// How many changes of one owner are kept: a peer that missed more is sent everything; default 10,000.
    pub fn max_delta_sizes(&self) -> usize {
        self.max_delta_sizes
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings::try_new(RawSettings::default())
            .expect("the defaults are in relation, as a test says")
    }
}

fn period(setting: &'static str, value: Duration, low: Duration) -> Result<(), SettingsError> {
    if (low..=MAX_PERIOD).contains(&value) {
        return Ok(());
    }
    Err(SettingsError::OutOfBounds {
        setting,
        value: format!("{value:?}"),
        low: format!("{low:?}"),
        high: format!("{MAX_PERIOD:?}"),
    })
}

fn number(setting: &'static str, value: usize, high: usize) -> Result<(), SettingsError> {
    if (1..=high).contains(&value) {
        return Ok(());
    }
    Err(SettingsError::OutOfBounds {
        setting,
        value: value.to_string(),
        low: "1".to_owned(),
        high: high.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_defaults_are_in_relation() {
        let settings = Settings::default();
        assert_eq!(settings.down_period(), Duration::from_millis(1500));
        assert_eq!(settings.max_silent_periods(), 3);
    }

    #[test]
    fn a_derived_down_period_is_never_below_a_second() {
        let settings = Settings::try_new(RawSettings {
            broadcast_period: Some(Duration::from_millis(25)),
            ..RawSettings::default()
        });
        assert_eq!(settings.unwrap().down_period(), SECOND);
    }

    #[test]
    fn a_down_period_below_600_ms_is_an_error_that_names_it() {
        let error = Settings::try_new(RawSettings {
            down_period: Some(Duration::from_millis(150)),
            ..RawSettings::default()
        })
        .unwrap_err();
        assert!(
            error.to_string().contains("registry.down_period"),
            "{error}"
        );
        assert!(error.to_string().contains("600ms"), "{error}");
    }

    #[test]
    fn a_down_period_below_two_broadcast_periods_is_an_error_that_names_both() {
        let error = Settings::try_new(RawSettings {
            broadcast_period: Some(SECOND),
            down_period: Some(SECOND),
            ..RawSettings::default()
        })
        .unwrap_err();
        assert!(
            error.to_string().contains("registry.down_period"),
            "{error}"
        );
        assert!(
            error.to_string().contains("registry.broadcast_period"),
            "{error}"
        );
    }

    #[test]
    fn a_permdown_period_not_above_the_down_period_is_an_error_that_names_both() {
        let error = Settings::try_new(RawSettings {
            down_period: Some(SECOND),
            permdown_period: Some(SECOND),
            ..RawSettings::default()
        })
        .unwrap_err();
        assert!(
            error.to_string().contains("registry.permdown_period"),
            "{error}"
        );
        assert!(
            error.to_string().contains("registry.down_period"),
            "{error}"
        );
    }

    #[test]
    fn zero_periods_and_zero_counts_are_errors() {
        for raw in [
            RawSettings {
                broadcast_period: Some(Duration::ZERO),
                ..RawSettings::default()
            },
            RawSettings {
                max_silent_periods: Some(0),
                ..RawSettings::default()
            },
            RawSettings {
                max_delta_sizes: Some(0),
                ..RawSettings::default()
            },
            RawSettings {
                permdown_period: Some(Duration::MAX),
                ..RawSettings::default()
            },
        ] {
            assert!(Settings::try_new(raw.clone()).is_err(), "{raw:?}");
        }
    }
}
