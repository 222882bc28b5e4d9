//! The time, or the one that `SOURCE_DATE_EPOCH` fixes.

use jiff::Timestamp;

/// A source of the time of day. Durations are measured with `std::time::Instant` instead, which no clock change moves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clock {
    fixed: Option<Timestamp>,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Clock {
        Clock { fixed: None }
    }

    /// A clock that stands at `seconds` after the epoch: reproducible-builds.org, `SOURCE_DATE_EPOCH`.
    pub fn fixed(seconds: i64) -> Option<Clock> {
        Timestamp::from_second(seconds).ok().map(|at| Clock { fixed: Some(at) })
    }

    /// The time now, in whole seconds: a finer one would say nothing and change every digest.
    pub fn now(&self) -> Timestamp {
        let now = self.fixed.unwrap_or_else(Timestamp::now);
        Timestamp::from_second(now.as_second()).unwrap_or(now)
    }

    /// The fixed time, if the clock has one.
    pub fn source_date_epoch(&self) -> Option<Timestamp> {
        self.fixed
    }
}
