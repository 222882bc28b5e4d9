//! `query/FILTER/`: what filters choose, and `namespace=`, which shows a branch of the images as if it were all.

use snapfs::tree::{ErrorKind, Kind, Lifetime};

use crate::harness::lab::{Bundle, attempt, run, text};
use crate::harness::mount::{Place, in_lab};
use crate::harness::world::{Setup, World};

fn world() -> Option<World> {
    let world = World::with(Setup::fixed())?;
    world.overlay("web");
    world.overlay("db");
    world.run("web");
    world.commit("web", "web label.env=prod label.a.b/c=d annotation.org.example.tier=front").unwrap();
    world.commit("web", "registry.example/team/web:1 label.env=test").unwrap();
    world.commit("db", "db label.env=prod").unwrap();
    Some(world)
}

fn query(world: &World, filter: &str) -> Vec<String> {
    world.list(&format!("query/{filter}")).unwrap_or_else(|error| panic!("{filter}: {error}"))
}

#[test]
fn a_filter_is_a_directory_of_links_to_what_it_chooses() {
    let Some(world) = world() else { return };
    let size = world.line("images/web/size");
    for (filter, expected) in [
        ("labels.env==prod", &["db", "web"][..]),
        ("labels.env!=prod,kind!=container", &["registry.example%2Fteam%2Fweb:1"]),
        ("labels.\"a.b%2Fc\"", &["web"]),
        ("labels.\"a.b%2Fc\"==d;name==db,kind==commit", &["db", "web"]),
        ("name==registry.example%2Fteam%2Fweb:1", &["registry.example%2Fteam%2Fweb:1"]),
        ("name~=web,kind==commit", &["registry.example%2Fteam%2Fweb:1", "web"]),
        ("annotations.\"org.example.tier\"==front", &["web"]),
        ("annotations.\"io.snapfs.container.name\"==db", &["db"]),
        ("engine==fake,kind==commit,labels.env==test", &["registry.example%2Fteam%2Fweb:1"]),
        ("created~=^20,labels.env==test", &["registry.example%2Fteam%2Fweb:1"]),
        (&format!("size=={size},labels.\"a.b%2Fc\""), &["web"]),
        ("status==running", &["web@fake"]),
        ("kind==container", &["db@fake", "web@fake"]),
        ("name==web", &["web", "web@fake"]),
        ("name==none", &[]),
    ] {
        let mut found = query(&world, filter);
        found.sort();
        assert_eq!(found, expected, "{filter}");
        for link in found {
            let path = format!("query/{filter}/{link}");
            let attr = world.attr(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!((attr.kind, attr.lifetime), (Kind::Symlink, Lifetime::Volatile));
            let target = world.link(&path).unwrap();
            let target = target.strip_prefix("../../").unwrap();
            assert_eq!(world.attr(target).unwrap().kind, Kind::Directory, "{path}: {target}");
        }
    }
    assert_eq!(world.list("query").unwrap(), [""; 0]);
    assert_eq!(world.attr("query/kind==image/web").unwrap_err().kind, ErrorKind::NotFound, "it is not chosen");
    // A label that changes, and a name that goes, are seen at once.
    let labels = world.ino("images/web/labels").unwrap();
    world.wait(world.tree.unlink(labels, "env".as_ref(), &crate::harness::world::me()).unwrap()).unwrap();
    world
        .wait(world.tree.remove_dir(world.ino("images").unwrap(), "db".as_ref(), &crate::harness::world::me()).unwrap())
        .unwrap();
    assert_eq!(query(&world, "labels.env==prod"), [""; 0]);
}

#[test]
fn what_is_no_filter_says_why() {
    let Some(world) = world() else { return };
    assert_eq!(world.read("query/last_error").unwrap(), "");
    for (filter, says) in [
        ("kind=commit", "at byte 4"),
        ("label.env==prod", "there is no field label.env; there are name"),
        ("labels.a.b", "KEY with a dot stands in double quotes"),
        ("name~=(", "regular expression"),
        ("name==100%", "%25"),
    ] {
        let error = world.attr(&format!("query/{filter}")).expect_err(filter);
        assert_eq!(error.kind, ErrorKind::Invalid, "{filter}");
        assert!(error.message.contains(says), "{filter}: {error}");
        if filter.contains('%') {
            continue;
        }
        let told = world.line("query/last_error");
        assert!(told.contains(filter) && told.ends_with(&error.message), "{told}");
    }
    // What programs look for by themselves is not there, and no mistake.
    let before = world.read("query/last_error").unwrap();
    assert_eq!(world.attr("query/.git").unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(world.read("query/last_error").unwrap(), before);
}

#[test]
fn a_namespace_is_all_that_is_seen() {
    let Some(world) = World::with(Setup { namespace: Some("team/a"), ..Setup::default() }) else { return };
    world.overlay("web");
    assert_eq!(world.list("images").unwrap(), [""; 0]);
    world.commit("web", "img label.env=prod").unwrap();
    world.commit("web", "sub/img:1").unwrap();
    world.echo("other:1", "images/img/tag").unwrap();
    assert_eq!(world.images(), ["team/a/img", "team/a/other:1", "team/a/sub/img:1"]);
    assert_eq!(world.list("images").unwrap(), ["img", "other:1", "sub"]);
    assert_eq!(world.list("images/sub").unwrap(), ["img:1"]);
    assert_eq!(query(&world, "labels.env==prod"), ["img"]);
    assert_eq!(world.link("query/name==sub%2Fimg:1/sub%2Fimg:1").unwrap(), "../../images/sub/img:1");
    let (images, me) = (world.ino("images").unwrap(), crate::harness::world::me());
    world.wait(world.tree.rename(images, "img".as_ref(), images, "moved".as_ref(), false, &me).unwrap()).unwrap();
    world.wait(world.tree.remove_dir(images, "other:1".as_ref(), &me).unwrap()).unwrap();
    assert_eq!(world.images(), ["team/a/moved", "team/a/sub/img:1"]);
    // What is in other namespaces is out of reach, whatever is written.
    let record = world.store.record(&"team/a/moved".parse().unwrap()).unwrap();
    let lease = world.store.lease().unwrap();
    let tag = |name: &str| {
        world.store.tag(&lease, &name.parse().unwrap(), (*record).clone(), snapfs::store::Replace::Allowed).unwrap()
    };
    tag("team/b/img");
    tag("team/ab");
    assert_eq!(world.list("images").unwrap(), ["moved", "sub"]);
    assert_eq!(world.attr("images/b").unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(query(&world, "kind==commit"), ["moved", "sub%2Fimg:1"]);
    let refused = world.commit("web", "registry.example:5000/x").unwrap_err();
    assert!(refused.message.contains("namespace team/a"), "{refused}");
}

#[test]
fn ls_and_scripts_use_queries() {
    if !in_lab() {
        return;
    }
    let place = Place::new();
    let bundle = Bundle::tiny("runc", &place.other("runc"), "web", "exec sleep 1000");
    bundle.start();
    let _daemon = place.serve();
    place.commit("web", "img label.env=prod");
    place.commit("web", "team/img:1 label.env=prod");
    let dir = place.dir();
    let shell = |script: &str| run(&["bash", "-c", &format!("cd {} && {script}", text(&dir))]);
    assert_eq!(shell("ls query/'labels.env==prod'/"), "img\nteam%2Fimg:1");
    assert_eq!(shell("cat query/'labels.env==prod'/*/labels/env"), "prod\nprod");
    assert_eq!(
        shell("ls query/'status==running,name==web'/web@runc/commit"),
        "query/status==running,name==web/web@runc/commit"
    );
    assert_eq!(shell("ls query/ | wc -l; test -d query"), "0");
    let wrong = attempt(&["ls", text(&dir.join("query/kind=commit"))]);
    assert!(wrong.code != 0 && wrong.stderr.contains("Invalid argument"), "{wrong:?}");
    assert!(shell("cat query/last_error").contains("expected ==, != or ~="));
}
