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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_has_one_id() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
    }
}
