//! Who refers to whom, so that a change of a referenced object reconciles its referrers at once.

use std::collections::{BTreeSet, HashMap};

use super::kinds::{Key, Kind, Reference};

/// The references of one controller's objects, in both directions.
#[derive(Default)]
pub struct References {
    declared: HashMap<Key, BTreeSet<Reference>>,
    waiting: HashMap<Key, Reference>,
    referrers: HashMap<(Kind, Key), BTreeSet<String>>,
}

impl References {
    /// Sets what an object's spec refers to.
    pub fn declare(&mut self, key: &Key, references: impl IntoIterator<Item = Reference>) {
        let new: BTreeSet<Reference> = references.into_iter().collect();
        let old =
            if new.is_empty() { self.declared.remove(key) } else { self.declared.insert(key.clone(), new.clone()) };
        for gone in old.unwrap_or_default().difference(&new) {
            if self.waiting.get(key) != Some(gone) {
                self.unlink(key, gone);
            }
        }
        for reference in &new {
            self.link(key, reference);
        }
    }

    /// Sets what an object waits for besides what its spec refers to.
    pub fn wait(&mut self, key: &Key, on: Option<Reference>) {
        let old = match &on {
            Some(on) => self.waiting.insert(key.clone(), on.clone()),
            None => self.waiting.remove(key),
        };
        if let Some(old) = old
            && Some(&old) != on.as_ref()
            && !self.declared.get(key).is_some_and(|declared| declared.contains(&old))
        {
            self.unlink(key, &old);
        }
        if let Some(on) = &on {
            self.link(key, on);
        }
    }

    /// Forgets an object.
    pub fn forget(&mut self, key: &Key) {
        self.wait(key, None);
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
        references.wait(&flow, Some(secret.clone()));
        assert_eq!(references.referrers(Kind::Secret, &target), std::slice::from_ref(&flow));
        assert!(references.referrers(Kind::Secret, &Key::new("other", "s")).is_empty());
        references.wait(&flow, None);
        assert_eq!(references.referrers(Kind::Secret, &target), std::slice::from_ref(&flow));
        references.forget(&flow);
        assert!(references.referrers(Kind::Secret, &target).is_empty());
        assert!(references.referrers.is_empty());
    }
}
