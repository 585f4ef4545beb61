//! Sets of fields as managed fields hold them (`fieldsV1`), and what two objects differ in.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::shape::{ListKind, Shape, item_key};

/// A set of paths into an object. Steps are written as in `fieldsV1`: `f:NAME`, `k:{…}` or `v:…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet(pub BTreeMap<String, Node>);

/// A step of a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The path that ends here is in the set.
    pub own: bool,
    /// Longer paths.
    pub below: FieldSet,
}

impl FieldSet {
    /// Whether no path is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.values().all(|node| !node.own && node.below.is_empty())
    }

    /// Adds a path.
    pub fn insert(&mut self, path: &[String]) {
        if let Some((first, rest)) = path.split_first() {
            let node = self.0.entry(first.clone()).or_default();
            if rest.is_empty() { node.own = true } else { node.below.insert(rest) }
        }
    }

    /// Removes a path and all that are longer.
    pub fn remove_below(&mut self, path: &[&str]) {
        match path {
            [] => {}
            [last] => {
                self.0.remove(*last);
            }
            [first, rest @ ..] => {
                if let Some(node) = self.0.get_mut(*first) {
                    node.below.remove_below(rest);
                    if !node.own && node.below.is_empty() {
                        self.0.remove(*first);
                    }
                }
            }
        }
    }

    /// Paths in either.
    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (step, node) in &other.0 {
            let mine = all.0.entry(step.clone()).or_default();
            mine.own |= node.own;
            mine.below = mine.below.union(&node.below);
        }
        all
    }

    /// Paths in `self` and not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, |mine, theirs| mine && !theirs)
    }

    /// Paths in both.
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |mine, theirs| mine && theirs)
    }

    fn combine(&self, other: &Self, keep: fn(bool, bool) -> bool) -> Self {
        let nothing = Node::default();
        let mut result = BTreeMap::new();
        for (step, node) in &self.0 {
            let theirs = other.0.get(step).unwrap_or(&nothing);
            let own = keep(node.own, theirs.own);
            let below = node.below.combine(&theirs.below, keep);
            if own || !below.is_empty() {
                result.insert(step.clone(), Node { own, below });
            }
        }
        Self(result)
    }

    /// As `fieldsV1`.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        for (step, node) in &self.0 {
            let mut below = node.below.to_json();
            if let (true, Value::Object(inner)) = (node.own && !node.below.is_empty(), &mut below) {
                inner.insert(".".into(), Value::Object(Map::new()));
            }
            map.insert(step.clone(), below);
        }
        Value::Object(map)
    }

    /// From `fieldsV1`.
    pub fn from_json(value: &Value) -> Self {
        let mut set = BTreeMap::new();
        for (step, inner) in value.as_object().into_iter().flatten().filter(|(step, _)| *step != ".") {
            let below = Self::from_json(inner);
            let own = below.0.is_empty() || inner.get(".").is_some();
            set.insert(step.clone(), Node { own, below });
        }
        Self(set)
    }

    /// The paths, in the dotted form of conflict messages.
    pub fn paths(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (step, node) in &self.0 {
            let step = match step.split_once(':') {
                Some(("f", name)) => format!(".{name}"),
                Some((_, key)) => format!("[{}]", key.trim_matches(['{', '}']).replace("\":", "=").replace('"', "")),
                None => step.clone(),
            };
            if node.own {
                all.push(step.clone());
            }
            all.extend(node.below.paths().into_iter().map(|rest| format!("{step}{rest}")));
        }
        all
    }

    /// The fields that a configuration sets.
    pub fn of(value: &Value, shape: Shape<'_>) -> Self {
        let mut set = Self::default();
        collect(value, shape, &mut Vec::new(), &mut set);
        set
    }

    /// The fields that `new` adds to `old` or sets differently.
    pub fn changed(old: &Value, new: &Value, shape: Shape<'_>) -> Self {
        let mut set = Self::default();
        compare(old, new, shape, &mut Vec::new(), &mut set);
        set
    }
}

fn collect(value: &Value, shape: Shape<'_>, path: &mut Vec<String>, set: &mut FieldSet) {
    match value {
        Value::Object(map) if !map.is_empty() && !shape.map_is_atomic() => {
            for (name, inner) in map {
                path.push(format!("f:{name}"));
                if shape.keys_are_data() {
                    set.insert(path);
                }
                collect(inner, shape.field(name), path, set);
                path.pop();
            }
        }
        Value::Array(items) if !items.is_empty() && shape.list() != ListKind::Atomic => {
            let kind = shape.list();
            for item in items {
                let Some(key) = item_key(&kind, item) else { continue };
                path.push(key);
                set.insert(path);
                if item.is_object() {
                    collect(item, shape.item(), path, set);
                }
                path.pop();
            }
        }
        _ => set.insert(path),
    }
}

fn compare(old: &Value, new: &Value, shape: Shape<'_>, path: &mut Vec<String>, set: &mut FieldSet) {
    if old == new {
        return;
    }
    match (old, new) {
        (Value::Object(before), Value::Object(after)) if !shape.map_is_atomic() => {
            for (name, inner) in after {
                path.push(format!("f:{name}"));
                match before.get(name) {
                    Some(before) => compare(before, inner, shape.field(name), path, set),
                    None => collect(inner, shape.field(name), path, set),
                }
                path.pop();
            }
        }
        (Value::Array(before), Value::Array(after)) if shape.list() != ListKind::Atomic => {
            let kind = shape.list();
            for item in after {
                let Some(key) = item_key(&kind, item) else { continue };
                let same = before.iter().find(|other| item_key(&kind, other).as_ref() == Some(&key));
                path.push(key);
                match same {
                    Some(before) => compare(before, item, shape.item(), path, set),
                    None => {
                        set.insert(path);
                        if item.is_object() {
                            collect(item, shape.item(), path, set);
                        }
                    }
                }
                path.pop();
            }
        }
        _ => collect(new, shape, path, set),
    }
}

/// The paths of `set` that `value` does not have.
pub fn missing(set: &FieldSet, value: Option<&Value>, shape: Shape<'_>) -> FieldSet {
    let mut result = FieldSet::default();
    for (step, node) in &set.0 {
        let (inner, shape) = match (step.split_once(':'), value) {
            (Some(("f", name)), Some(Value::Object(map))) => (map.get(name), shape.field(name)),
            (Some(_), Some(Value::Array(items))) => {
                let kind = shape.list();
                (items.iter().find(|item| item_key(&kind, item).as_deref() == Some(step)), shape.item())
            }
            _ => (None, Shape::Free),
        };
        let below = missing(&node.below, inner, shape);
        let own = node.own && inner.is_none();
        if own || !below.is_empty() {
            result.0.insert(step.clone(), Node { own, below });
        }
    }
    result
}
