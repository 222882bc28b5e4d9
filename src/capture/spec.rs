//! A container's runtime specification, as far as a capture needs it.

use serde_json::Value;

use crate::capture::Error;
use crate::engine::Container;

/// The specification; null if there is none yet, or if it is no JSON.
pub(super) fn of(container: &Container) -> Result<Value, Error> {
    Ok(match container.read_spec()? {
        Some(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
        None => Value::Null,
    })
}
