//! Objects, versions and the log of changes that watches read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

/// Where an object is: resource (`plural.group`), namespace (empty for cluster scope) and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// `plural.group`.
    pub resource: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.resource, self.namespace, self.name)
    }
}

/// A change.
#[derive(Clone)]
pub struct Change {
    /// Version that it made.
    pub version: u64,
    /// When, in virtual time since the start.
    pub at: Duration,
    /// What changed.
    pub key: Key,
    /// Before; absent for a creation.
    pub before: Option<Arc<Value>>,
    /// After; absent for a deletion.
    pub after: Option<Arc<Value>>,
}

/// The stored objects.
pub struct Store {
    started: Instant,
    version: u64,
    made: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    log: Vec<Change>,
    /// Changes up to this version are forgotten.
    compacted: u64,
    /// Grows with what matters to garbage collection.
    structure: u64,
}

impl Store {
    /// Nothing yet.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            version: 0,
            made: 0,
            objects: BTreeMap::new(),
            log: Vec::new(),
            compacted: 0,
            structure: 0,
        }
    }

    /// Grows when an object comes or goes, or its owners, finalizers or end change.
    pub fn structure(&self) -> u64 {
        self.structure
    }

    /// The newest version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// A number that was not given out before.
    pub fn fresh(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// The object.
    pub fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// Objects of a resource, of one namespace or all.
    pub fn list<'a>(
        &'a self,
        resource: &'a str,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> {
        let from = Key { resource: resource.to_owned(), namespace: namespace.to_owned(), name: String::new() };
        self.objects
            .range(from..)
            .take_while(move |(key, _)| key.resource == resource)
            .filter(move |(key, _)| namespace.is_empty() || key.namespace == namespace)
    }

    /// All objects.
    pub fn all(&self) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        self.objects.iter()
    }

    /// Stores a new version of an object, or removes it. Gives what is stored, or what was.
    pub fn commit(&mut self, key: &Key, object: Option<Value>) -> Arc<Value> {
        self.version += 1;
        let before = self.objects.get(key).cloned();
        let stored = object.map(|mut object| {
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            Arc::new(object)
        });
        match &stored {
            Some(object) => self.objects.insert(key.clone(), object.clone()),
            None => self.objects.remove(key),
        };
        let part = |object: &Option<Arc<Value>>, field: &str| object.as_ref().map(|it| it["metadata"][field].clone());
        let parts = ["uid", "ownerReferences", "finalizers", "deletionTimestamp"];
        if parts.iter().any(|field| part(&before, field) != part(&stored, field)) {
            self.structure += 1;
        }
        self.log.push(Change {
            version: self.version,
            at: self.started.elapsed(),
            key: key.clone(),
            before: before.clone(),
            after: stored.clone(),
        });
        stored.or(before).unwrap_or_default()
    }

    /// Changes of a resource after a version, or nothing if they are forgotten.
    pub fn since(&self, version: u64) -> Option<&[Change]> {
        if version < self.compacted {
            return None;
        }
        let from = self.log.partition_point(|change| change.version <= version);
        Some(&self.log[from..])
    }

    /// Everything that ever changed, also what watches cannot see any more.
    pub fn history(&self) -> &[Change] {
        &self.log
    }

    /// The objects as they were at a version.
    pub fn at(&self, version: u64) -> BTreeMap<Key, Arc<Value>> {
        let mut objects = self.objects.clone();
        for change in self.log.iter().rev().take_while(|change| change.version > version) {
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), before.clone()),
                None => objects.remove(&change.key),
            };
        }
        objects
    }

    /// The newest version of so long ago.
    pub fn version_before(&self, ago: Duration) -> u64 {
        let then = self.started.elapsed().saturating_sub(ago);
        let after = self.log.partition_point(|change| change.at <= then);
        after.checked_sub(1).map_or(0, |last| self.log[last].version)
    }

    /// Lets watches see no change up to now any more.
    pub fn compact(&mut self) {
        self.compacted = self.version;
    }
}
