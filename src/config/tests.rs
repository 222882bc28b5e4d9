use super::*;

fn parse(text: &str) -> Result<Options, Error> {
    Options::parse(text, Unknown::Refuse)
}

#[test]
fn nothing_gives_the_defaults() {
    assert_eq!(parse("").unwrap(), Options::default());
    assert_eq!(parse(",,").unwrap(), Options::default());
    assert_eq!(Options::default().store, PathBuf::from("/var/lib/snapfs"));
}

#[test]
fn every_option_of_the_table_is_taken() {
    for (name, value, _) in OPTIONS {
        let example = match value {
            "DIR" | "FILE" => "/x",
            "N" | "SECONDS" => "3",
            "GROUP" => "wheel",
            "SIZE" => "3M",
            "raw|in-root" => "in-root",
            "NAME" => "team/a",
            other => panic!("no example of {other}"),
        };
        assert_ne!(parse(&format!("{name}={example}")).unwrap(), Options::default(), "{name}");
        assert_eq!(parse(name), Err(Error::NoValue { option: name, value }));
        assert_eq!(parse(&format!("{name}=")), Err(Error::NoValue { option: name, value }));
    }
}

#[test]
fn what_fstab_and_systemd_add_is_accepted() {
    let line = "rw,noexec,nosuid,nodev,_netdev,nofail,user,users,owner,group,nouser,defaults,noatime,relatime,auto,\
        noauto,x-systemd.requires=snapfs.service,X-mount.mkdir,comment=systemd.automount,user=nobody";
    assert_eq!(parse(line).unwrap(), Options { no_exec: true, ..Options::default() });
}

#[test]
fn group_alone_belongs_to_mount() {
    assert_eq!(parse("group").unwrap().group, None);
    assert_eq!(parse("gid=adm,gid=wheel,group").unwrap().group.as_deref(), Some("wheel"));
    assert_eq!(parse("group=wheel").unwrap_err(), Error::Group { group: "wheel".to_owned() });
}

#[test]
fn what_a_remount_is_given_is_accepted() {
    let line = "ro,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other,max_read=1048576,remount";
    assert_eq!(parse(line).unwrap(), Options { read_only: true, remount: true, ..Options::default() });
}

#[test]
fn the_last_of_two_wins_and_roots_add_up() {
    let options = parse("store=/a,ro,store=/b,rw,runc-root=/r1,runc-root=/r2").unwrap();
    assert_eq!((options.store, options.read_only), (PathBuf::from("/b"), false));
    assert_eq!(options.runc_roots, [PathBuf::from("/r1"), PathBuf::from("/r2")]);
}

#[test]
fn quotation_marks_keep_commas() {
    assert_eq!(parse("store=\"/a,b\",jobs=2").unwrap().store, PathBuf::from("/a,b"));
    assert!(matches!(parse("store=\"/a"), Err(Error::Quotation { .. })));
}

#[test]
fn errors_name_the_option_and_the_way_out() {
    let sentence = |text| parse(text).unwrap_err().to_string();
    assert_eq!(sentence("stroe=/x"), "unknown mount option \"stroe=/x\"; did you mean \"store\"?");
    assert_eq!(sentence("podmanroot=/x"), "unknown mount option \"podmanroot=/x\"; did you mean \"podman-root\"?");
    assert_eq!(sentence("store=x"), "mount option \"store=x\" needs an absolute path; begin it with /");
    assert_eq!(sentence("jobs=0"), "mount option \"jobs=0\" needs a number from 1 on");
    assert_eq!(sentence("store"), "mount option \"store\" needs a value: store=DIR");
    assert!(sentence("suid").contains("is refused"));
    assert!(sentence("dev").contains("is refused"));
    assert!(sentence("ro=1").starts_with("unknown mount option"));
}

#[test]
fn sloppy_skips_the_unknown_and_no_more() {
    let sloppy = |text| Options::parse(text, Unknown::Ignore);
    assert_eq!(sloppy("frobnicate,store=/a").unwrap().store, PathBuf::from("/a"));
    assert!(sloppy("store=a").is_err());
}

#[test]
fn distance_counts_changes() {
    assert_eq!((distance("", "ro"), distance("stroe", "store"), distance("kitten", "sitting")), (2, 2, 3));
}

#[test]
fn the_manual_page_has_every_option_and_no_other() {
    let page = include_str!("../../docs/man/mount.snapfs.8");
    let mut shown: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix(".BI ")?.split_once("= ")).map(|(name, _)| name).collect();
    let mut known: Vec<&str> = OPTIONS.iter().map(|(name, ..)| *name).collect();
    shown.sort_unstable();
    known.sort_unstable();
    assert_eq!(shown, known);
}

#[test]
fn sizes_have_a_unit_or_none() {
    for (text, bytes) in
        [("0", 0), ("4096", 4096), ("3K", 3 << 10), ("500M", 500 << 20), ("20G", 20 << 30), ("1T", 1 << 40)]
    {
        assert_eq!(parse(&format!("cache={text}")).unwrap().cache, Some(bytes), "{text}");
    }
    for text in ["G", "-1", "+1", "1.5G", "4GB", "99999999999T", "4g", "M4"] {
        assert_eq!(parse(&format!("cache={text}")), Err(Error::Size { value: text.to_owned() }));
    }
}

#[test]
fn links_are_shown_in_one_of_two_ways() {
    assert!(!parse("symlinks=raw").unwrap().symlinks_in_root);
    assert!(parse("symlinks=in-root").unwrap().symlinks_in_root);
    let error = parse("symlinks=all").unwrap_err();
    assert_eq!(error.to_string(), "mount option \"symlinks=all\" needs one of raw, in-root");
}

#[test]
fn a_namespace_begins_image_names() {
    assert_eq!(parse("namespace=team/a").unwrap().namespace.unwrap().as_str(), "team/a");
    for (value, says) in [("a//b", "component"), ("a:1", "no tag"), ("../a", "domain"), ("a@b", "digest")] {
        let error = parse(&format!("namespace={value}")).unwrap_err();
        assert!(matches!(error, Error::Namespace { .. }) && error.to_string().contains(says), "{error}");
    }
}
