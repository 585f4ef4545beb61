//! How each part of an object merges: which lists are sets or maps, which maps are taken as a whole.
//!
//! Custom kinds say it in their schema. For built-in kinds the field names decide, by the tables below, which hold the
//! markers of the Kubernetes types for the fields that the operator and the simulated controllers use; a field that is
//! not in a table is granular when it is a map and atomic when it is a list, as an unmarked field is.

use serde_json::Value;

/// Part of an object, as the merge sees it.
#[derive(Clone, Copy)]
pub enum Shape<'a> {
    /// A built-in kind: name of the field that holds this part, and of the field that holds that one.
    Builtin { field: &'a str, parent: &'a str },
    /// A custom kind: the part's schema.
    Custom(&'a Value),
    /// Inside schemaless data: maps are granular, lists atomic.
    Free,
}

/// How a list merges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// Replaced as a whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// Items with these key fields.
    Map(Vec<String>),
}

impl<'a> Shape<'a> {
    /// The shape of a field of this map.
    pub fn field(self, name: &'a str) -> Shape<'a> {
        match self {
            Shape::Builtin { field, .. } => Shape::Builtin { field: name, parent: field },
            Shape::Custom(schema) => {
                if name == "metadata" && schema.get("properties").is_some_and(|all| all.get("spec").is_some()) {
                    return Shape::Builtin { field: "metadata", parent: "" };
                }
                match schema.get("properties").and_then(|all| all.get(name)) {
                    Some(schema) => Shape::Custom(schema),
                    None => match schema.get("additionalProperties") {
                        Some(schema) if schema.is_object() => Shape::Custom(schema),
                        _ => Shape::Free,
                    },
                }
            }
            Shape::Free => Shape::Free,
        }
    }

    /// The shape of an item of this list.
    pub fn item(self) -> Shape<'a> {
        match self {
            Shape::Custom(schema) => schema.get("items").map_or(Shape::Free, Shape::Custom),
            other => other,
        }
    }

    /// Whether this map is taken as a whole.
    pub fn map_is_atomic(self) -> bool {
        match self {
            Shape::Builtin { field: "data", parent: "ControllerRevision" } => true,
            Shape::Builtin { field, .. } => matches!(
                field,
                "selector"
                    | "labelSelector"
                    | "podSelector"
                    | "namespaceSelector"
                    | "nodeSelector"
                    | "secretKeyRef"
                    | "configMapKeyRef"
                    | "fieldRef"
                    | "resourceFieldRef"
                    | "roleRef"
                    | "claimRef"
                    | "regarding"
                    | "related"
                    | "dataSource"
            ),
            Shape::Custom(schema) => schema.get("x-kubernetes-map-type").is_some_and(|kind| kind == "atomic"),
            Shape::Free => false,
        }
    }

    /// Whether the keys of this map are data rather than fields of a structure.
    pub fn keys_are_data(self) -> bool {
        match self {
            Shape::Custom(schema) => schema.get("properties").is_none(),
            _ => false,
        }
    }

    /// How this list merges.
    pub fn list(self) -> ListKind {
        let keys = |names: &[&str]| ListKind::Map(names.iter().map(|name| (*name).to_owned()).collect());
        match self {
            Shape::Builtin { field, parent } => match (field, parent) {
                ("containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets", _) => keys(&["name"]),
                ("secrets", "ServiceAccount") => keys(&["name"]),
                ("ports", "spec") => keys(&["port", "protocol"]),
                ("ports", "containers" | "initContainers") => keys(&["containerPort", "protocol"]),
                ("volumeMounts", _) => keys(&["mountPath"]),
                ("topologySpreadConstraints", _) => keys(&["topologyKey", "whenUnsatisfiable"]),
                ("hostAliases" | "podIPs", _) => keys(&["ip"]),
                ("conditions", "status") => keys(&["type"]),
                ("ownerReferences", "metadata") => keys(&["uid"]),
                ("finalizers", "metadata") => ListKind::Set,
                _ => ListKind::Atomic,
            },
            Shape::Custom(schema) => match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
                Some("set") => ListKind::Set,
                Some("map") => ListKind::Map(
                    schema
                        .get("x-kubernetes-list-map-keys")
                        .and_then(Value::as_array)
                        .map(|all| all.iter().filter_map(Value::as_str).map(str::to_owned).collect())
                        .unwrap_or_default(),
                ),
                _ => ListKind::Atomic,
            },
            Shape::Free => ListKind::Atomic,
        }
    }
}

/// Identity of an item of a list that merges, as managed fields write it: `k:{"name":"x"}` or `v:"x"`.
pub fn item_key(kind: &ListKind, item: &Value) -> Option<String> {
    match kind {
        ListKind::Atomic => None,
        ListKind::Set => Some(format!("v:{item}")),
        ListKind::Map(keys) => {
            // Sorted by name, as Kubernetes writes them.
            let mut keys: Vec<_> = keys.iter().collect();
            keys.sort();
            let mut parts = Vec::new();
            for key in keys {
                match item.get(key) {
                    Some(value) => parts.push(format!("{:?}:{value}", key)),
                    // The one key field with a default among the kinds in use.
                    None if key == "protocol" => parts.push("\"protocol\":\"TCP\"".to_owned()),
                    None => {}
                }
            }
            (!parts.is_empty()).then(|| format!("k:{{{}}}", parts.join(",")))
        }
    }
}
