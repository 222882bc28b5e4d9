//! The units and an fstab line, under a systemd of their own: the script tests/lab/units says what must be so.

use std::time::Duration;

use crate::harness::lab::{script, start};
use crate::harness::mount::{in_lab, install};

#[test]
fn the_units_do_what_they_say() {
    if !in_lab() {
        return;
    }
    install();
    let ended = start(&[&script("systemd"), &script("units")]).end(Duration::from_secs(150));
    print!("{}", ended.stdout);
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.ends_with("all of it is so\n"));
}
