//! From when on the next change of a file is sure to leave another change time. Pure.

use std::time::Duration;

use crate::sys::dir::Time;

/// How old a change time must be for the next change to be sure to get another. The kernel before 6.13 takes change times
/// from the timer's tick, which comes every 10 ms at the slowest (`CONFIG_HZ=100`).
pub const SETTLED: Duration = Duration::from_millis(20);

/// The same for a file system whose times are whole seconds (ext2 to ext4 with inodes of 128 bytes), or every other one.
const SETTLED_WHOLE: Duration = Duration::from_millis(2020);

/// Whether what changed last at `ctime` had settled at `at`: whatever happens to it from then on changes its change time.
pub fn is_settled(ctime: Time, at: Time) -> bool {
    let nanoseconds = |time: Time| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    // A time that only happens to be a whole second is rare, and loses nothing by being waited for.
    let settled = if ctime.nanoseconds == 0 { SETTLED_WHOLE } else { SETTLED };
    nanoseconds(ctime) + settled.as_nanos().cast_signed() < nanoseconds(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_whole_seconds_settles_later() {
        let time = |seconds, nanoseconds| Time { seconds, nanoseconds };
        let (exact, whole) = (time(7, 1), time(7, 0));
        assert!(!is_settled(exact, time(7, 20_000_001)) && is_settled(exact, time(7, 20_000_002)));
        assert!(!is_settled(whole, time(9, 20_000_000)) && is_settled(whole, time(9, 20_000_001)));
    }
}
