//! `namespace=`: a mount that shows one branch of the images as if it were all of them.

use crate::api::{Error, ErrorKind, ImageName, Snapfs};
use crate::oci::InvalidName;

impl Snapfs {
    /// The name in the store of what is `name` below `images/`.
    ///
    /// Errors: with the namespace before it, it is no image name.
    pub fn full_name(&self, name: &ImageName) -> Result<ImageName, Error> {
        let Some(namespace) = &self.namespace else { return Ok(name.clone()) };
        self.full_path(name.as_str()).parse().map_err(|error: InvalidName| {
            Error::new(ErrorKind::Invalid, format!("{name} cannot be in the namespace {namespace}: {error}"))
        })
    }

    /// The name below `images/` of what is `name` in the store; `None` if it is not to be seen there.
    pub fn local_name<'a>(&self, name: &'a ImageName) -> Option<&'a str> {
        match &self.namespace {
            None => Some(name.as_str()),
            Some(namespace) => name.as_str().strip_prefix(namespace.as_str())?.strip_prefix('/'),
        }
    }

    /// The path in the store of a path below `images/`.
    pub(super) fn full_path(&self, path: &str) -> String {
        match &self.namespace {
            None => path.to_owned(),
            Some(namespace) if path.is_empty() => namespace.to_string(),
            Some(namespace) => format!("{namespace}/{path}"),
        }
    }
}
