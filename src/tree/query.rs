//! `/query/FILTER/`: symbolic links to what a filter chooses.
//!
//! `query/` lists nothing, for there is no end of filters; `query/last_error`, not listed either, says why the last
//! text was none.

use std::sync::Arc;

use crate::api::{Error, ErrorKind, Match, Snapfs};
use crate::tree::file::{decode_name, encode_name};
use crate::tree::node::Node;

/// The directory's name.
pub(super) const QUERY: &str = "query";
const LAST_ERROR: &str = "last_error";

/// What `name` is below `query/`.
pub(super) fn find(api: &Snapfs, name: &str) -> Result<Option<Node>, Error> {
    // Programs look for `.git`, `.hidden` and the like wherever they are.
    if name.starts_with('.') {
        return Ok(None);
    }
    if name == LAST_ERROR {
        return Ok(Some(Node::QueryError));
    }
    api.filter(&text_of(name)?)?;
    Ok(Some(Node::Query(name.into())))
}

fn text_of(name: &str) -> Result<String, Error> {
    let wrong =
        || Error::new(ErrorKind::Invalid, "not a filter: % stands before two hexadecimal digits, %25 is % itself");
    decode_name(name).ok_or_else(wrong)
}

pub(super) fn list(api: &Snapfs, query: &str) -> Result<Vec<(String, Node)>, Error> {
    let found = api.query(&*api.filter(&text_of(query)?)?);
    Ok(found.into_iter().map(entry).collect())
}

pub(super) fn entry_of(api: &Snapfs, query: &str, name: &str) -> Result<Option<Node>, Error> {
    let filter = api.filter(&text_of(query)?)?;
    // No image's name has an @ in it, and every container's here has one.
    if name.contains('@') {
        let mut found = api.query_containers(&filter).into_iter().map(entry);
        return Ok(found.find(|(listed, _)| listed == name).map(|(_, node)| node));
    }
    let image = decode_name(name).filter(|image| api.query_image(&filter, image));
    Ok(image.map(|image| entry(Match::Image(image))).filter(|(listed, _)| listed == name).map(|(_, node)| node))
}

/// The link's name and the link.
fn entry(found: Match) -> (String, Node) {
    let (name, target) = match found {
        Match::Image(name) => (encode_name(&name), format!("../../images/{name}")),
        Match::Container { name, .. } if name.contains('@') => (name.clone(), format!("../../containers/{name}")),
        Match::Container { name, key } => (format!("{name}@{}", key.engine), format!("../../containers/{name}")),
    };
    (name, Node::QueryLink(Arc::from(target)))
}
