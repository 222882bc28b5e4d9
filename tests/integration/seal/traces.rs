//! File systems on which a change leaves less of a trace than one would think.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::harness::cgroup::wait_for;
use crate::harness::lab::run;
use crate::harness::mount::in_lab;
use crate::harness::world::{LIMIT, World};

use super::workload::{STAMPED, command, remapped};
use super::{check_stamps, fill};

/// Something mounted for as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn on(path: &Path, arguments: &[&str]) -> Mounted {
        run(&[&["mount"], arguments, &[path.to_str().unwrap()]].concat());
        Mounted(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// In an inode of 128 bytes there is no place for less than a second.
#[test]
fn a_change_within_the_same_second_is_not_lost() {
    if !in_lab() {
        return;
    }
    let Some(world) = World::new() else { return };
    world.plain("web");
    let root = world.root_of("web");
    let disk = root.with_extension("img");
    fs::File::create(&disk).unwrap().set_len(16 << 20).unwrap();
    run(&["mkfs.ext4", "-q", "-I", "128", disk.to_str().unwrap()]);
    let _mounted = Mounted::on(&root, &["-o", "loop", disk.to_str().unwrap()]);
    let file = root.join("file");
    let mut said = Vec::new();
    for round in 0..10 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        thread::sleep(Duration::from_millis(1100) - Duration::from_nanos(now.subsec_nanos().into()));
        fs::write(&file, "before").unwrap();
        let first = fs::metadata(&file).unwrap();
        thread::sleep(Duration::from_millis(50));
        world.commit("web", "one").unwrap();
        fs::write(&file, "after.").unwrap();
        let second = fs::metadata(&file).unwrap();
        assert_eq!((first.ctime_nsec(), first.ino()), (0, second.ino()));
        thread::sleep(Duration::from_millis(50));
        world.commit("web", "two").unwrap();
        let whole = world.whole("two");
        assert_eq!(whole.top("file").as_deref(), Some(&b"after."[..]), "round {round}");
        if first.ctime() == second.ctime() {
            return;
        }
        said.push((first.ctime(), second.ctime()));
    }
    panic!("the machine was too slow to change a file twice in a second: {said:?}");
}

/// A tmpfs does not notice that a mapped file is stored to.
#[test]
fn what_is_stored_through_a_mapping_without_a_trace_is_of_one_moment() {
    if !in_lab() {
        return;
    }
    let Some(world) = World::new() else { return };
    world.plain("web");
    let root = world.root_of("web");
    let _mounted = Mounted::on(&root, &["-t", "tmpfs", "none"]);
    fill(&root, 400, 50_000);
    world.run("web");
    world.group("web", |group| group.run(&command("remap", &root)));
    wait_for("the workload is at work", LIMIT, || root.join(remapped(STAMPED - 1)).exists());
    for round in 0..8 {
        world.commit("web", "img").unwrap();
        let whole = world.whole("img");
        let stamp = |n: usize| u64::from_le_bytes(whole.top(&remapped(n)).unwrap().try_into().unwrap());
        let stamps: Vec<u64> = (0..STAMPED).map(stamp).collect();
        check_stamps(&format!("commit {round}"), &stamps);
    }
    world.assert_thawed("web", "after the commits");
}
