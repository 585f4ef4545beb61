//! Managed fields: who owns which field of an object, and what follows for an apply or an update.

use serde_json::{Value, json};

use super::fields::{FieldSet, missing};
use super::merge;
use super::shape::Shape;

/// How a manager writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Server-side apply.
    Apply,
    /// Anything else.
    Update,
}

/// Fields of one manager.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    manager: String,
    operation: Operation,
    subresource: Option<String>,
    api_version: String,
    time: String,
    fields: FieldSet,
}

/// Who writes, as managed fields record it.
pub struct Writer<'a> {
    /// Name of the manager.
    pub manager: &'a str,
    /// `status`, if that is written.
    pub subresource: Option<&'a str>,
    /// Version of the kind.
    pub api_version: &'a str,
    /// Timestamp for the entry.
    pub time: &'a str,
}

/// A field that another manager owns with another value.
pub struct Conflict {
    /// The other manager.
    pub manager: String,
    /// The other manager's way of writing.
    pub operation: Operation,
    /// Dotted path.
    pub field: String,
}

fn read(object: &Value) -> Vec<Entry> {
    let list = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .map(|entry| Entry {
            manager: text(entry, "manager"),
            operation: if entry["operation"] == "Apply" { Operation::Apply } else { Operation::Update },
            subresource: entry["subresource"].as_str().filter(|name| !name.is_empty()).map(str::to_owned),
            api_version: text(entry, "apiVersion"),
            time: text(entry, "time"),
            fields: FieldSet::from_json(&entry["fieldsV1"]),
        })
        .collect()
}

fn text(entry: &Value, name: &str) -> String {
    entry[name].as_str().unwrap_or_default().to_owned()
}

fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    entries.sort_by(|a, b| {
        (a.operation as u8, &a.time, &a.manager, &a.subresource).cmp(&(
            b.operation as u8,
            &b.time,
            &b.manager,
            &b.subresource,
        ))
    });
    let list: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let mut value = json!({
                "manager": entry.manager,
                "operation": if entry.operation == Operation::Apply { "Apply" } else { "Update" },
                "apiVersion": entry.api_version,
                "time": entry.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": entry.fields.to_json(),
            });
            if let Some(name) = &entry.subresource {
                value["subresource"] = json!(name);
            }
            value
        })
        .collect();
    object["metadata"]["managedFields"] = Value::Array(list);
}

/// Takes out what nobody owns: identity and what the server sets, and what this endpoint does not write.
fn strip(set: &mut FieldSet, subresource: Option<&str>, has_status: bool) {
    for path in ["f:apiVersion", "f:kind"] {
        set.remove_below(&[path]);
    }
    for field in [
        "f:name",
        "f:namespace",
        "f:uid",
        "f:resourceVersion",
        "f:generation",
        "f:creationTimestamp",
        "f:deletionTimestamp",
        "f:deletionGracePeriodSeconds",
        "f:managedFields",
        "f:selfLink",
        "f:generateName",
    ] {
        set.remove_below(&["f:metadata", field]);
    }
    match subresource {
        Some("status") => {
            set.remove_below(&["f:spec"]);
            set.remove_below(&["f:metadata", "f:labels"]);
        }
        _ if has_status => set.remove_below(&["f:status"]),
        _ => {}
    }
    // An empty metadata of a configuration owns nothing.
    if set.0.get("f:metadata").is_some_and(|node| node.below.is_empty()) {
        set.0.remove("f:metadata");
    }
}

impl Entry {
    fn is_of(&self, writer: &Writer<'_>, operation: Operation) -> bool {
        self.manager == writer.manager
            && self.operation == operation
            && self.subresource.as_deref() == writer.subresource
    }
}

/// What an apply makes of the live object, before defaults and validation; the managed fields follow with [`record`].
pub struct Applied {
    /// The merged object.
    pub object: Value,
    /// Fields that the configuration sets.
    fields: FieldSet,
}

/// Merges a configuration into the live object, and removes what the manager applied before and does not any more.
pub fn apply(live: &Value, config: &Value, shape: Shape<'_>, writer: &Writer<'_>, has_status: bool) -> Applied {
    let mut fields = FieldSet::of(config, shape);
    strip(&mut fields, writer.subresource, has_status);
    let mut object = merge::apply(live, config, shape);
    let entries = read(live);
    if let Some(last) = entries.iter().find(|entry| entry.is_of(writer, Operation::Apply)) {
        let others = entries
            .iter()
            .filter(|entry| !entry.is_of(writer, Operation::Apply))
            .fold(FieldSet::default(), |all, entry| all.union(&entry.fields));
        let gone = last.fields.difference(&fields);
        merge::prune(&mut object, &gone, &others.union(&fields), shape);
    }
    Applied { object, fields }
}

/// Records an apply in the managed fields of the final object. Gives the conflicts when there are some and `force` is not set.
pub fn record_apply(
    live: &Value,
    applied: &Applied,
    object: &mut Value,
    shape: Shape<'_>,
    writer: &Writer<'_>,
    force: bool,
) -> Result<(), Vec<Conflict>> {
    let mut entries = read(live);
    let changed = FieldSet::changed(live, object, shape);
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut().filter(|entry| !entry.is_of(writer, Operation::Apply)) {
        let taken = entry.fields.intersection(&changed);
        if !taken.is_empty() && !force {
            conflicts.extend(taken.paths().into_iter().map(|field| Conflict {
                manager: entry.manager.clone(),
                operation: entry.operation,
                field,
            }));
        }
        entry.fields = entry.fields.difference(&taken);
        entry.fields = entry.fields.difference(&missing(&entry.fields, Some(object), shape));
    }
    if !conflicts.is_empty() {
        return Err(conflicts);
    }
    // What defaulting or pruning took away is not owned.
    let fields = applied.fields.difference(&missing(&applied.fields, Some(object), shape));
    match entries.iter_mut().find(|entry| entry.is_of(writer, Operation::Apply)) {
        Some(entry) => {
            if entry.fields != fields || entry.api_version != writer.api_version {
                entry.time = writer.time.to_owned();
            }
            entry.fields = fields;
            entry.api_version = writer.api_version.to_owned();
        }
        None => entries.push(entry(writer, Operation::Apply, fields)),
    }
    write(object, entries);
    Ok(())
}

/// Records an update in the managed fields of the final object.
pub fn record_update(live: &Value, object: &mut Value, shape: Shape<'_>, writer: &Writer<'_>, has_status: bool) {
    let mut entries = read(live);
    let mut changed = FieldSet::changed(live, object, shape);
    strip(&mut changed, writer.subresource, has_status);
    let mut found = false;
    for entry in &mut entries {
        entry.fields = entry.fields.difference(&missing(&entry.fields, Some(object), shape));
        if entry.is_of(writer, Operation::Update) {
            found = true;
            if !changed.is_empty() {
                entry.fields = entry.fields.union(&changed);
                entry.time = writer.time.to_owned();
            }
        } else {
            entry.fields = entry.fields.difference(&changed);
        }
    }
    if !found && !changed.is_empty() {
        entries.push(entry(writer, Operation::Update, changed));
    }
    write(object, entries);
}

fn entry(writer: &Writer<'_>, operation: Operation, fields: FieldSet) -> Entry {
    Entry {
        manager: writer.manager.to_owned(),
        operation,
        subresource: writer.subresource.map(str::to_owned),
        api_version: writer.api_version.to_owned(),
        time: writer.time.to_owned(),
        fields,
    }
}
