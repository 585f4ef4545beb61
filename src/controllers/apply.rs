//! Brings owned objects to what a build wants: nothing is sent when the watch caches say that it is so already.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::cache::{Caches, Entry, decode};
use super::error::{Error, REASON_NAME_CONFLICT};
use super::kinds::{Key, Kind, Watched};
use super::subset;
use super::writer::Writer;
use crate::api::names;
use crate::api::revision;

/// An owned object as a build wants it. Namespace, owner reference, managed-by label and the hash annotation are
/// added when it is applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The object.
    pub object: Value,
    /// Created when absent and never changed after (Jobs, ControllerRevisions, volume claims).
    pub create_only: bool,
}

impl Desired {
    /// An object that is kept as wanted.
    ///
    /// # Errors
    /// When the object has no name or cannot be written as JSON.
    pub fn new<K: Watched>(object: &K) -> Result<Self, Error> {
        let name = object.meta().name.clone().unwrap_or_default();
        let value = serde_json::to_value(object)
            .map_err(|error| Error::stalled("Unrenderable", format!("{} {name:?}: {error}", K::KIND)))?;
        Ok(Self { kind: K::KIND, name, object: value, create_only: false })
    }

    /// An object that is created when absent and never changed after.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn once<K: Watched>(object: &K) -> Result<Self, Error> {
        Ok(Self { create_only: true, ..Self::new(object)? })
    }
}

/// An owned object that a build wants gone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Removal {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

impl Removal {
    /// The owned object of this kind and name.
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into() }
    }
}

/// The object on whose behalf children are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace and name.
    pub key: Key,
    /// Its UID.
    pub uid: String,
    /// Field manager of its controller.
    pub manager: &'static str,
    /// Whether it has a status, so that children may have been made for it before.
    pub is_known: bool,
}

/// What an apply left behind.
#[derive(Debug, Default)]
pub struct Applied {
    /// Objects that were created or changed.
    pub written: Vec<(Kind, String)>,
    /// Objects that were deleted.
    pub removed: Vec<(Kind, String)>,
    namespace: String,
    live: BTreeMap<(Kind, String), Arc<Entry>>,
}

impl Applied {
    /// What an apply would have left, for tests of status stages.
    #[cfg(test)]
    pub(crate) fn of(namespace: &str, objects: &[(Kind, Value)]) -> Self {
        let caches = Caches::default();
        let mut applied = Self { namespace: namespace.to_owned(), ..Self::default() };
        for (kind, object) in objects {
            if let Some(change) = caches.of(*kind).put(object, true)
                && let Some(entry) = change.new
            {
                applied.live.insert((*kind, change.key.name), entry);
            }
        }
        applied
    }

    /// A desired object as it is at the API server now.
    ///
    /// # Errors
    /// When it does not fit the type.
    pub fn live<K: Watched>(&self, name: &str) -> Result<Option<K>, Error> {
        self.live
            .get(&(K::KIND, name.to_owned()))
            .map(|entry| decode(entry, K::KIND, &Key::new(self.namespace.as_str(), name)))
            .transpose()
    }

    /// What an apply would leave behind, for tests of pure stages: these objects.
    #[cfg(test)]
    pub(crate) fn of_live(namespace: &str, objects: BTreeMap<(Kind, String), Value>) -> Self {
        let caches = Caches::default();
        let mut live = BTreeMap::new();
        for ((kind, name), mut object) in objects {
            object["metadata"]["namespace"] = json!(namespace);
            object["metadata"]["resourceVersion"] = json!("1");
            caches.of(kind).put(&object, false);
            live.extend(caches.of(kind).get(&Key::new(namespace, name.as_str())).map(|entry| ((kind, name), entry)));
        }
        Self { namespace: namespace.to_owned(), live, ..Self::default() }
    }
}

/// Applies what is desired in order, then deletes what is to go. Objects that exist under a desired name and are
/// not controlled by `parent` are found before anything is written.
///
/// # Errors
/// The first that occurs; what was written before stays and the next run goes on from there.
pub async fn apply(
    writer: &Writer,
    caches: &Caches,
    parent: &Parent,
    desired: &[Desired],
    removals: &[Removal],
) -> Result<Applied, Error> {
    let mut applied = Applied { namespace: parent.key.namespace.clone(), ..Applied::default() };
    let key = |name: &str| Key::new(parent.key.namespace.as_str(), name);
    for child in desired {
        if let Some(entry) = caches.of(child.kind).get(&key(&child.name)) {
            check_ours(parent, child.kind, &child.name, &entry)?;
        }
    }
    // A child that is missing may be one that went with its owner: where the watch of the owner is behind, children
    // would be made for the object that was, and collected, again and again. A new object has lost none.
    let mut is_there = !parent.is_known;
    for child in desired {
        let key = key(&child.name);
        let entry = match caches.of(child.kind).get(&key) {
            Some(entry) if child.create_only => entry,
            Some(entry) => {
                let finished = finish(parent, child);
                if is_applied(&entry, &finished)
                    || (has_hash(&entry, &finished) && writer.is_altered(child.kind, &key, &entry))
                {
                    entry
                } else {
                    let changed = writer.change(child.kind, &key, parent, finished.clone(), &entry.uid).await?;
                    if !is_applied(&changed, &finished) {
                        writer.note_altered(child.kind, &key, &changed);
                    }
                    applied.written.push((child.kind, child.name.clone()));
                    changed
                }
            }
            None => {
                if !is_there {
                    writer.check_parent(parent).await?;
                    is_there = true;
                }
                let entry = writer.create(child.kind, &key, parent, finish(parent, child)).await?;
                applied.written.push((child.kind, child.name.clone()));
                entry
            }
        };
        applied.live.insert((child.kind, child.name.clone()), entry);
    }
    for removal in removals {
        let key = key(&removal.name);
        let wanted = desired.iter().any(|child| child.kind == removal.kind && child.name == removal.name);
        let Some(entry) = caches.of(removal.kind).get(&key) else { continue };
        if wanted || entry.deleting || !is_ours(parent, &entry) {
            continue;
        }
        writer.delete(removal.kind, &key, &entry.uid).await?;
        applied.removed.push((removal.kind, removal.name.clone()));
    }
    Ok(applied)
}

fn is_ours(parent: &Parent, entry: &Entry) -> bool {
    entry.owner.as_ref().and_then(|owner| owner.uid.as_deref()) == Some(parent.uid.as_str())
}

fn check_ours(parent: &Parent, kind: Kind, name: &str, entry: &Entry) -> Result<(), Error> {
    if is_ours(parent, entry) {
        return Ok(());
    }
    // An object of a deleted owner of our own name goes away by itself: garbage collection is on its way.
    let predecessor =
        entry.owner.as_ref().is_some_and(|owner| owner.kind == parent.kind && owner.name == parent.key.name);
    if predecessor {
        return Err(Error::waiting(
            super::kinds::Reference::new(kind, name),
            "Deleting",
            format!("{kind} {name:?} belongs to an earlier {} of this name and is being deleted", parent.kind),
        ));
    }
    Err(name_conflict(kind, name, parent))
}

pub(crate) fn name_conflict(kind: Kind, name: &str, parent: &Parent) -> Error {
    Error::stalled(
        REASON_NAME_CONFLICT,
        format!(
            "{kind} {name:?} exists and is not owned by this {}; rename or delete it, or rename this {}",
            parent.kind, parent.kind
        ),
    )
}

/// The object as it is sent: with namespace, owner, label and hash.
pub(crate) fn finish(parent: &Parent, child: &Desired) -> Value {
    let mut object = child.object.clone();
    let resource = child.kind.resource();
    object["apiVersion"] = json!(resource.api_version);
    object["kind"] = json!(resource.kind);
    // What a serialised type leaves as null or as an empty status would claim fields that are not ours.
    if let Some(members) = object.as_object_mut() {
        members.remove("status");
    }
    drop_nulls(&mut object);
    object["metadata"]["namespace"] = json!(parent.key.namespace);
    object["metadata"]["labels"][names::LABEL_MANAGED_BY] = json!(names::MANAGED_BY);
    let owner = parent.kind.resource();
    object["metadata"]["ownerReferences"] = json!([{
        "apiVersion": owner.api_version,
        "kind": owner.kind,
        "name": parent.key.name,
        "uid": parent.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    }]);
    let hash = revision::canonical(&object).map(|text| revision::short(&text, 16)).unwrap_or_default();
    object["metadata"]["annotations"][names::ANNOTATION_APPLIED] = json!(hash);
    object
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, value| !value.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Whether what was applied last is `finished`.
fn has_hash(entry: &Entry, finished: &Value) -> bool {
    let path = ["metadata", "annotations", names::ANNOTATION_APPLIED];
    let hash = |value: &Value| path.iter().try_fold(value, |value, key| value.get(key)).cloned();
    entry.value().is_ok_and(|live| hash(&live) == hash(finished))
}

/// Whether the cached object is what applying `finished` would make of it: the hash says that it was the last thing
/// we applied, the comparison that nobody changed it since.
fn is_applied(entry: &Entry, finished: &Value) -> bool {
    let Ok(live) = entry.value() else { return false };
    let Some(wanted) = finished.as_object() else { return false };
    wanted.iter().all(|(key, wanted)| match key.as_str() {
        // The watch gives kind and version by the request, not always in the object.
        "apiVersion" | "kind" => true,
        // Others may add owners and finalizers; of the metadata only what we set for its own sake counts.
        "metadata" => ["labels", "annotations"]
            .iter()
            .all(|part| wanted.get(part).is_none_or(|wanted| subset::contains(&live["metadata"][part], wanted))),
        _ => subset::contains(live.get(key).unwrap_or(&Value::Null), wanted),
    })
}
