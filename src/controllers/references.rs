//! Who refers to whom, so that a change of a referenced object reconciles its referrers at once.

use std::collections::{BTreeSet, HashMap};

use super::kinds::{Key, Kind, Reference};

/// The references of one controller's objects, in both directions.
#[derive(Default)]
pub struct References {
    declared: HashMap<Key, BTreeSet<Reference>>,
    met: HashMap<Key, BTreeSet<Reference>>,
    referrers: HashMap<(Kind, Key), BTreeSet<String>>,
}

impl References {
    /// Sets what an object's spec refers to.
    pub fn declare(&mut self, key: &Key, references: impl IntoIterator<Item = Reference>) {
        let new = references.into_iter().collect();
        let old = replace(&mut self.declared, key, &new);
        self.relink(key, &old, &new, |references| &references.met);
    }

    /// Sets what the last reconcile of an object met besides: what it waits for, and what decided without being named by the spec.
    pub fn meet(&mut self, key: &Key, references: impl IntoIterator<Item = Reference>) {
        let new = references.into_iter().collect();
        let old = replace(&mut self.met, key, &new);
        self.relink(key, &old, &new, |references| &references.declared);
    }

    fn relink(
        &mut self,
        key: &Key,
        old: &BTreeSet<Reference>,
        new: &BTreeSet<Reference>,
        others: impl Fn(&Self) -> &HashMap<Key, BTreeSet<Reference>>,
    ) {
        for gone in old.difference(new) {
            if !others(self).get(key).is_some_and(|others| others.contains(gone)) {
                self.unlink(key, gone);
            }
        }
        for reference in new {
            self.link(key, reference);
        }
    }

    /// Forgets an object.
    pub fn forget(&mut self, key: &Key) {
        self.meet(key, []);
        self.declare(key, []);
    }

    /// The objects that refer to this one.
    pub fn referrers(&self, kind: Kind, key: &Key) -> Vec<Key> {
        let names = self.referrers.get(&(kind, key.clone()));
        names.into_iter().flatten().map(|name| Key::new(key.namespace.as_str(), name.as_str())).collect()
    }

    fn link(&mut self, key: &Key, reference: &Reference) {
        let target = (reference.kind, Key::new(key.namespace.as_str(), reference.name.as_str()));
        self.referrers.entry(target).or_default().insert(key.name.clone());
    }

    fn unlink(&mut self, key: &Key, reference: &Reference) {
        let target = (reference.kind, Key::new(key.namespace.as_str(), reference.name.as_str()));
        if let Some(names) = self.referrers.get_mut(&target) {
            names.remove(&key.name);
            if names.is_empty() {
                self.referrers.remove(&target);
            }
        }
    }
}

fn replace(sets: &mut HashMap<Key, BTreeSet<Reference>>, key: &Key, new: &BTreeSet<Reference>) -> BTreeSet<Reference> {
    let old = if new.is_empty() { sets.remove(key) } else { sets.insert(key.clone(), new.clone()) };
    old.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_referrers_until_they_stop_referring() {
        let mut references = References::default();
        let flow = Key::new("n", "flow");
        let secret = Reference::new(Kind::Secret, "s");
        let target = Key::new("n", "s");
        references.declare(&flow, [secret.clone()]);
        let model = Reference::new(Kind::ModelDeployment, "m");
        references.meet(&flow, [secret.clone(), model]);
        assert_eq!(references.referrers(Kind::ModelDeployment, &Key::new("n", "m")), std::slice::from_ref(&flow));
        assert_eq!(references.referrers(Kind::Secret, &target), std::slice::from_ref(&flow));
        assert!(references.referrers(Kind::Secret, &Key::new("other", "s")).is_empty());
        references.meet(&flow, []);
        assert!(references.referrers(Kind::ModelDeployment, &Key::new("n", "m")).is_empty());
        assert_eq!(references.referrers(Kind::Secret, &target), std::slice::from_ref(&flow));
        references.forget(&flow);
        assert!(references.referrers(Kind::Secret, &target).is_empty());
        assert!(references.referrers.is_empty());
    }
}
