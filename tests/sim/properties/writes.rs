//! P8: a user's spec and metadata are never written, nor anything that is not the operator's. And a part of P2: what
//! fails is tried again later and later, not at once.

use std::collections::BTreeMap;

use super::is_primary;
use crate::apiserver::{Inner, WriteRecord};
use crate::cluster::controller;
use crate::world::OPERATOR;

/// What was written that must not be.
pub fn broken(inner: &Inner) -> Vec<String> {
    let mut faults = Vec::new();
    for write in inner.writes.iter().filter(|write| write.session.starts_with(OPERATOR)) {
        if is_primary(&write.key) && write.subresource.as_deref() != Some("status") {
            faults.push(format!("P8: a write of a user's object: {write}"));
        }
        faults.extend(wrong_status(write));
    }
    let ours = inner.writes.iter().filter(|write| write.changed && write.session.starts_with(OPERATOR));
    let ours: BTreeMap<u64, &WriteRecord> = ours.map(|write| (write.version, write)).collect();
    for change in inner.store.history() {
        let Some(write) = ours.get(&change.version) else { continue };
        let (Some(before), after) = (&change.before, &change.after) else { continue };
        let same = |field: &str| after.as_ref().is_none_or(|after| after[field] == before[field]);
        let meta =
            |field: &str| after.as_ref().is_none_or(|after| after["metadata"][field] == before["metadata"][field]);
        if is_primary(&change.key) && !(same("spec") && meta("labels") && meta("annotations") && meta("finalizers")) {
            faults.push(format!("P8: a user's object was changed: {write}"));
        }
        let free = ["leases.coordination.k8s.io", "events.events.k8s.io"];
        if !is_primary(&change.key) && !free.contains(&change.key.resource.as_str()) && controller(before).is_none() {
            faults.push(format!("P8: an object that nobody of ours owns was changed: {write}"));
        }
    }
    faults.extend(hasty(inner));
    faults
}

/// Attempts of one write within [`WINDOW_MS`], of at most two processes that begin with a quarter of a second and wait
/// twice as long each time: six each, and again after a restart.
const ATTEMPTS: usize = 24;
/// Milliseconds.
const WINDOW_MS: u128 = 10_000;

/// Writes that fail again and again, too often.
fn hasty(inner: &Inner) -> Option<String> {
    let mut by_path: BTreeMap<&str, Vec<u128>> = BTreeMap::new();
    for (at, path) in &inner.failed {
        by_path.entry(path).or_default().push(*at);
    }
    by_path.into_iter().find_map(|(path, times)| {
        let hasty = times.windows(ATTEMPTS).find(|window| window[ATTEMPTS - 1] - window[0] < WINDOW_MS)?;
        Some(format!("P2: {path} failed and was tried {ATTEMPTS} times within {} ms", hasty[ATTEMPTS - 1] - hasty[0]))
    })
}

/// A patch of a status that holds anything but the status and the version that it is for.
fn wrong_status(write: &WriteRecord) -> Option<String> {
    if write.subresource.as_deref() != Some("status") || write.verb == "update" {
        return None;
    }
    let members = write.body.as_object()?;
    let outside = members.keys().find(|key| !matches!(key.as_str(), "status" | "metadata" | "apiVersion" | "kind"))?;
    Some(format!("P8: a status patch that holds {outside}: {write}"))
}
