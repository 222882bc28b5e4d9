//! `mount.snapfs`: mount(8)'s helper.

fn main() {}
