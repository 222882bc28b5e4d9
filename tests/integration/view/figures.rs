//! How long it takes, beside the same tree unpacked on a disk: run with `--ignored --nocapture`, in release, on a quiet
//! machine. `SNAPFS_FIGURES` names a directory on a real file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use snapfs::image::Compression;
use snapfs::store::Store;

use crate::harness::mount::{Place, can_mount, command};
use crate::roundtrip::extract;
use crate::view::images::{Packing, make};
use crate::view::reading::noise;
use crate::view::tars::Tar;

fn timed<T>(act: impl FnOnce() -> T) -> Duration {
    let began = Instant::now();
    act();
    began.elapsed()
}

fn find(root: &Path) -> Duration {
    timed(|| {
        let output = command("find").arg(root).arg("-ls").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(output.stdout.iter().filter(|byte| **byte == b'\n').count() > 50_000);
    })
}

fn cat(path: &Path) -> Duration {
    timed(|| {
        let script = format!("cat {} > /dev/null", path.display());
        assert!(command("sh").args(["-c", &script]).status().unwrap().success());
    })
}

fn forget() {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// Small files opened, read and closed, in a random order.
fn read_files(root: &Path, paths: &[PathBuf]) -> Duration {
    let paths: Vec<PathBuf> = paths.iter().map(|path| root.join(path)).collect();
    timed(|| paths.iter().for_each(|path| drop(fs::read(path).unwrap())))
}

#[test]
#[ignore = "a measurement"]
fn figures() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let unpacked = place.other("unpacked");
    let mut small = Tar::default();
    let mut paths = Vec::new();
    for n in 0..50_000u64 {
        let path = format!("d{}/e{}/file-{n}", n % 50, n / 50 % 20);
        small = small.file(&path, noise(n, 200 + (n as usize * 7919) % 8000));
        paths.push(PathBuf::from(path));
    }
    let small = small.end();
    // Half of it compresses.
    let large: Vec<u8> = noise(1, 1 << 30)
        .chunks(4096)
        .enumerate()
        .flat_map(|(n, page)| if n % 2 == 0 { page.to_vec() } else { vec![7; 4096] })
        .collect();
    let large_tar = Tar::default().file("large", &large).end();
    extract(&small, &unpacked);
    extract(&large_tar, &unpacked);
    drop(large);
    {
        let store = Store::open_dir(&place.other("store")).unwrap();
        let own = Packing::Own(Compression::Zstd { level: 1 });
        make(&store, "small", &[&small], own);
        make(&store, "large", &[&large_tar], own);
        make(&store, "foreign", &[&small], Packing::Gzip);
    }
    drop((small, large_tar));
    let daemon = place.serve_with(&[]);
    let rootfs = |image: &str| place.dir().join("images").join(image).join("rootfs");
    let index = timed(|| fs::read_dir(rootfs("small")).unwrap().count());
    println!("index of 50,000 files, {:?}", index);
    forget();
    let native = [find(&unpacked), find(&unpacked)];
    let ours = [find(&rootfs("small")), find(&rootfs("small"))];
    println!(
        "find -ls: native {native:?}, rootfs {ours:?}: {:.2} x, {:.2} x",
        ratio(ours[0], native[0]),
        ratio(ours[1], native[1])
    );
    // A random order, the same each time.
    paths.sort_by_key(|path| snapfs::oci::Digest::of(path.as_os_str().as_encoded_bytes()));
    paths.truncate(10_000);
    for image in ["small", "foreign"] {
        fs::read_dir(rootfs(image)).unwrap().count();
        forget();
        let native = [read_files(&unpacked, &paths), read_files(&unpacked, &paths), read_files(&unpacked, &paths)];
        forget();
        let ours = [
            read_files(&rootfs(image), &paths),
            read_files(&rootfs(image), &paths),
            read_files(&rootfs(image), &paths),
        ];
        println!(
            "10,000 files, {image}: native {native:?}, rootfs {ours:?}: cold {:.2} x, warm {:.2} x",
            ratio(ours[0], native[0]),
            ratio(ours[2], native[2])
        );
    }
    forget();
    let blob = fs::read_dir(place.other("store/blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    fs::copy(&blob, place.other("blob.zst")).unwrap();
    let zstd = timed(|| {
        command("sh")
            .args(["-c", &format!("zstd -d -c {} > /dev/null", place.other("blob.zst").display())])
            .status()
            .unwrap()
    });
    let zstd_file = timed(|| {
        command("zstd")
            .args(["-d", "-q", "-f"])
            .arg(place.other("blob.zst"))
            .arg("-o")
            .arg(place.other("blob.tar"))
            .status()
            .unwrap()
    });
    fs::read_dir(rootfs("large")).unwrap().count();
    let first = cat(&rootfs("large/").join("large"));
    let head = timed(|| command("head").args(["-c", "1"]).arg(rootfs("large").join("large")).output().unwrap());
    let second = [cat(&rootfs("large").join("large")), cat(&rootfs("large").join("large"))];
    cat(&unpacked.join("large"));
    let native = [cat(&unpacked.join("large")), cat(&unpacked.join("large"))];
    println!(
        "cat of 1 GiB: zstd -d {zstd:?} (to a file {zstd_file:?}), first {first:?} = {:.2} x its speed; second {second:?}, native {native:?}: {:.2} x; head {head:?}",
        ratio(zstd, first),
        ratio(second[1], native[1])
    );
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    println!(
        "{}",
        status
            .lines()
            .filter(|line| line.starts_with("Vm") && (line.contains("HWM") || line.contains("RSS")))
            .collect::<Vec<_>>()
            .join(" ")
    );
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}
