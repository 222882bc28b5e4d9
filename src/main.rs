//! `snapfs`: the daemon and its command line.

fn main() {
    snapfs::guard::take_over();
}
