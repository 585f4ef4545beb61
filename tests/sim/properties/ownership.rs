//! P5: no child of one object is ever taken by another of the same name.

use super::Then;
use crate::apiserver::store::Change;
use crate::cluster::controller;

/// A child that changed hands.
pub fn broken(_: &Then, change: &Change) -> Option<String> {
    let (before, after) = (change.before.as_ref()?, change.after.as_ref()?);
    let (was, is) = (controller(before), controller(after));
    // Whoever has none may be a person's: it must not get one of ours.
    let taken = was != is && is.is_some() && before["metadata"]["uid"] == after["metadata"]["uid"];
    let owners = after["metadata"]["ownerReferences"].as_array();
    let controllers = owners.into_iter().flatten().filter(|owner| owner["controller"] == true).count();
    if taken {
        return Some(format!("P5: {} belonged to {was:?} and belongs to {is:?} now", change.key));
    }
    (controllers > 1).then(|| format!("P5: {} has {controllers} controllers", change.key))
}
