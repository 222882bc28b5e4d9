//! Which boot of the machine this is.

use std::io;

/// The kernel's random id of this boot, 36 characters: random(4), `/proc/sys/kernel/random/boot_id`.
pub fn boot_id() -> io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let id = text.trim_end();
    if id.len() == 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Ok(id.to_owned());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's boot_id is not a UUID"))
}

/// How many nanoseconds the time of day is ahead of the time since boot. It changes only when somebody sets the clock: what
/// NTP does little by little moves both.
pub fn clock_lead() -> i128 {
    use rustix::time::{ClockId, Timespec, clock_gettime};
    let nanoseconds = |at: Timespec| i128::from(at.tv_sec) * 1_000_000_000 + i128::from(at.tv_nsec);
    let look = || {
        let (before, day, after) =
            (clock_gettime(ClockId::Boottime), clock_gettime(ClockId::Realtime), clock_gettime(ClockId::Boottime));
        let (before, day, after) = (nanoseconds(before), nanoseconds(day), nanoseconds(after));
        (after - before, day - i128::midpoint(before, after))
    };
    // Somebody else may have had the processor between two of them: the shortest of several looks counts.
    (0..16).map(|_| look()).min().map_or(0, |(_, lead)| lead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_go_at_one_pace() {
        let lead = clock_lead();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!((clock_lead() - lead).abs() < 5_000_000);
    }

    #[test]
    fn the_boot_has_one_id() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }
}
