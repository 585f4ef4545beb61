//! What must hold in every run, whatever goes wrong.
//!
//! P1 (what is wanted comes true once faults stop), P2 (then nothing is written), P3 (the end is that of a run without
//! faults) and P7 (a bad object delays no other) are judged by the runs in `scenario.rs` and `campaign.rs`; the others
//! are read from the history of all objects here.

mod gates;
mod jobs;
mod ownership;
mod traffic;
mod writes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::apiserver::store::{Change, Key};
use crate::faults::strike::neighbours;
use crate::world::{OPERATOR, World};

/// What was broken in a run.
pub fn broken(world: &World) -> Vec<String> {
    let inner = world.server.lock();
    let mut faults = writes::broken(&inner);
    faults.extend(inner.warnings.iter().map(|warning| format!("a warning of the API server: {warning}")));
    let sessions = inner.writes.iter().filter(|write| write.changed);
    let mut then =
        Then { sessions: sessions.map(|write| (write.version, write.session.clone())).collect(), ..Then::default() };
    for change in inner.store.history() {
        then.take(change);
        if neighbours::owns(&change.key.name) {
            continue;
        }
        let found = [traffic::broken(&then, change), ownership::broken(&then, change)].into_iter();
        let found = found.chain([jobs::broken(&then, change), gates::broken(&then, change)]).flatten();
        faults.extend(found.map(|fault| format!("{:>9} ms  {fault}", change.at.as_millis())));
    }
    faults
}

/// An object from a time on; nothing when it is gone.
type State = (Duration, Option<Arc<Value>>);

/// The objects as they were at a moment, and before.
#[derive(Default)]
struct Then {
    objects: BTreeMap<Key, Arc<Value>>,
    /// All states of an object, with their times.
    states: BTreeMap<Key, Vec<State>>,
    /// Who made a version.
    sessions: BTreeMap<u64, String>,
}

impl Then {
    fn take(&mut self, change: &Change) {
        match &change.after {
            Some(after) => self.objects.insert(change.key.clone(), after.clone()),
            None => self.objects.remove(&change.key),
        };
        self.states.entry(change.key.clone()).or_default().push((change.at, change.after.clone()));
    }

    /// Whether the operator made a change.
    fn is_ours(&self, change: &Change) -> bool {
        self.sessions.get(&change.version).is_some_and(|session| session.starts_with(OPERATOR))
    }

    /// Objects of a resource.
    fn of<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = &'a Arc<Value>> {
        self.objects.iter().filter(move |(key, _)| key.resource == resource).map(|(_, object)| object)
    }

    /// Every state that an object was in within a time before a moment.
    fn lately<'a>(&'a self, key: &Key, now: Duration, within: Duration) -> impl Iterator<Item = &'a Value> {
        let states = self.states.get(key).map(Vec::as_slice).unwrap_or_default();
        let from = now.saturating_sub(within);
        // The state that held at the beginning of the time counts too.
        let first = states.partition_point(|(at, _)| *at < from).saturating_sub(1);
        states[first..].iter().filter_map(|(_, state)| state.as_deref())
    }

    /// Every state that an object was ever in.
    fn ever<'a>(&'a self, key: &Key) -> impl Iterator<Item = &'a Value> {
        let states = self.states.get(key).map(Vec::as_slice).unwrap_or_default();
        states.iter().filter_map(|(_, state)| state.as_deref())
    }
}

/// Whether a change is one of the operator's own kinds.
fn is_primary(key: &Key) -> bool {
    key.resource.ends_with(llmops::api::GROUP)
}
