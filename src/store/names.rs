//! The names in memory: all of them in order, and the directories that their slashes make; pure.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::oci::ImageName;
use crate::store::Record;

/// What stands at one name of a directory of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// An image.
    Image(Arc<Record>),
    /// A directory of images; never empty.
    Directory,
}

/// Why a name cannot be an image's: names are paths, and a file cannot be a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// A shorter name is an image.
    Image(String),
    /// The name is a directory, which holds this name among others.
    Directory(String),
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Conflict::Image(name) => write!(f, "{name} is an image, and nothing can be below an image"),
            Conflict::Directory(child) => write!(f, "it is a directory of images, which holds {child}"),
        }
    }
}

/// All names of a store.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Shared with whoever lists it; copied when it changes while somebody still does.
    images: Arc<BTreeMap<ImageName, Arc<Record>>>,
    /// What is in each directory; the top is the empty path. Only directories that hold something are here.
    directories: BTreeMap<String, BTreeMap<String, Entry>>,
}

impl Names {
    pub(crate) fn snapshot(&self) -> Arc<BTreeMap<ImageName, Arc<Record>>> {
        Arc::clone(&self.images)
    }

    pub(crate) fn get(&self, name: &ImageName) -> Option<&Arc<Record>> {
        self.images.get(name)
    }

    /// The entries of a directory, in order.
    pub(crate) fn list(&self, directory: &str) -> Option<&BTreeMap<String, Entry>> {
        self.directories.get(directory)
    }

    /// What keeps `name` from being an image.
    pub(crate) fn conflict(&self, name: &ImageName) -> Option<Conflict> {
        for (directory, child) in splits(name.as_str()) {
            let path = join(directory, child);
            match self.directories.get(directory).and_then(|entries| entries.get(child)) {
                Some(Entry::Image(_)) if path != name.as_str() => return Some(Conflict::Image(path)),
                Some(Entry::Directory) if path == name.as_str() => {
                    let inside = self.directories.get(&path).and_then(|entries| entries.keys().next());
                    return Some(Conflict::Directory(join(&path, inside.map_or("", String::as_str))));
                }
                _ => {}
            }
        }
        None
    }

    /// The directories that `name` needs and that do not exist, outermost first.
    pub(crate) fn missing_directories(&self, name: &ImageName) -> Vec<String> {
        splits(name.as_str())
            .map(|(directory, _)| directory)
            .filter(|directory| !directory.is_empty() && !self.directories.contains_key(*directory))
            .map(str::to_owned)
            .collect()
    }

    /// Set what `name` stands for. The caller has asked for a [`conflict`](Self::conflict).
    pub(crate) fn insert(&mut self, name: ImageName, record: Arc<Record>) {
        for (directory, child) in splits(name.as_str()) {
            let entry = match join(directory, child) == name.as_str() {
                true => Entry::Image(Arc::clone(&record)),
                false => Entry::Directory,
            };
            self.directories.entry(directory.to_owned()).or_default().insert(child.to_owned(), entry);
        }
        Arc::make_mut(&mut self.images).insert(name, record);
    }

    /// Forget `name`; returns the directories that are empty now and gone, innermost first.
    pub(crate) fn remove(&mut self, name: &ImageName) -> Vec<String> {
        let mut vacated = Vec::new();
        if Arc::make_mut(&mut self.images).remove(name).is_none() {
            return vacated;
        }
        let steps: Vec<(&str, &str)> = splits(name.as_str()).collect();
        for (directory, child) in steps.into_iter().rev() {
            let Some(entries) = self.directories.get_mut(directory) else { break };
            entries.remove(child);
            if !entries.is_empty() {
                break;
            }
            self.directories.remove(directory);
            if !directory.is_empty() {
                vacated.push(directory.to_owned());
            }
        }
        vacated
    }
}

/// Each component of a name with the directory it is in, outermost first: `a/b:1` gives `("", "a")` and `("a", "b:1")`.
fn splits(name: &str) -> impl Iterator<Item = (&str, &str)> {
    let ends = name.match_indices('/').map(|(at, _)| at).chain([name.len()]);
    ends.map(|end| name[..end].rsplit_once('/').unwrap_or(("", &name[..end])))
}

fn join(directory: &str, child: &str) -> String {
    if directory.is_empty() { child.to_owned() } else { format!("{directory}/{child}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Descriptor, Digest, MEDIA_TYPE_MANIFEST};
    use jiff::Timestamp;
    use proptest::prelude::*;

    fn record() -> Arc<Record> {
        let manifest = Descriptor::new(MEDIA_TYPE_MANIFEST, Digest::of(b""), 0);
        Arc::new(Record::new(manifest, Timestamp::UNIX_EPOCH))
    }

    fn name(text: &str) -> ImageName {
        text.parse().unwrap()
    }

    fn listing(names: &Names, directory: &str) -> Vec<String> {
        let entries = names.list(directory).into_iter().flatten();
        entries.map(|(child, entry)| format!("{child}{}", if *entry == Entry::Directory { "/" } else { "" })).collect()
    }

    #[test]
    fn names_nest_and_their_directories_go_with_them() {
        let mut names = Names::default();
        for text in ["img", "r.example/team/web:1", "r.example/team/db"] {
            names.insert(name(text), record());
        }
        assert_eq!(listing(&names, ""), ["img", "r.example/"]);
        assert_eq!(listing(&names, "r.example/team"), ["db", "web:1"]);
        assert_eq!(names.remove(&name("r.example/team/db")), Vec::<String>::new());
        assert_eq!(names.remove(&name("r.example/team/web:1")), ["r.example/team", "r.example"]);
        assert_eq!(listing(&names, ""), ["img"]);
        assert_eq!(names.remove(&name("absent")), Vec::<String>::new());
    }

    #[test]
    fn an_image_is_no_directory() {
        let mut names = Names::default();
        names.insert(name("a/b"), record());
        assert_eq!(names.conflict(&name("a")), Some(Conflict::Directory("a/b".to_owned())));
        assert_eq!(names.conflict(&name("a/b/c/d")), Some(Conflict::Image("a/b".to_owned())));
        assert_eq!(names.conflict(&name("a/b")), None);
        assert_eq!(names.conflict(&name("a/bc")), None);
        assert_eq!(names.missing_directories(&name("a/x/y/z")), ["a/x", "a/x/y"]);
    }

    #[test]
    fn a_snapshot_stays_as_it_was() {
        let mut names = Names::default();
        names.insert(name("a"), record());
        let before = names.snapshot();
        names.remove(&name("a"));
        assert_eq!((before.len(), names.snapshot().len()), (1, 0));
    }

    proptest! {
        /// The directories say the same as the names alone would.
        #[test]
        fn directories_follow_from_the_names(steps in prop::collection::vec(("[ab](/[ab]){0,3}", any::<bool>()), 0..60)) {
            let mut names = Names::default();
            let mut model: Vec<String> = Vec::new();
            for (text, add) in steps {
                if add && names.conflict(&name(&text)).is_none() {
                    let clashes = |other: &String| other.starts_with(&format!("{text}/")) || text.starts_with(&format!("{other}/"));
                    prop_assert!(!model.iter().any(clashes));
                    names.insert(name(&text), record());
                    model.push(text);
                } else if !add {
                    names.remove(&name(&text));
                    model.retain(|other| *other != text);
                }
            }
            model.sort();
            model.dedup();
            let kept: Vec<String> = names.snapshot().keys().map(ToString::to_string).collect();
            prop_assert_eq!(&kept, &model);
            let directories: std::collections::BTreeSet<String> =
                model.iter().flat_map(|text| splits(text).map(|(directory, _)| directory.to_owned())).collect();
            prop_assert_eq!(names.directories.keys().cloned().collect::<std::collections::BTreeSet<_>>(), directories);
        }
    }
}
