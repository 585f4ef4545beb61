//! Label and field selectors of lists and watches.

use serde_json::Value;

/// A parsed pair of selectors.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Clone, Debug)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

impl Selector {
    /// Parses the selectors of a query.
    pub fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Self, String> {
        let labels =
            split(labels.unwrap_or_default()).iter().map(|part| requirement(part)).collect::<Result<_, _>>()?;
        let fields = split(fields.unwrap_or_default())
            .iter()
            .map(|part| {
                let (name, equal, value) = match part.split_once("!=") {
                    Some((name, value)) => (name, false, value),
                    None => {
                        let (name, value) =
                            part.split_once('=').ok_or_else(|| format!("invalid field selector {part}"))?;
                        (name, true, value.trim_start_matches('='))
                    }
                };
                // The server knows few fields a kind; an unknown one is refused there, so it must not pass here.
                let known = ["metadata.name", "metadata.namespace", "spec.nodeName", "status.phase", "type"];
                if known.contains(&name) {
                    Ok((name.to_owned(), equal, value.to_owned()))
                } else {
                    Err(format!("field label not supported: {name}"))
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    /// Whether an object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        let label = |name: &str| object["metadata"]["labels"].get(name).and_then(Value::as_str);
        let field = |path: &str| {
            object.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_str).unwrap_or_default()
        };
        self.labels.iter().all(|requirement| match requirement {
            Requirement::In(name, values) => label(name).is_some_and(|value| values.iter().any(|one| one == value)),
            Requirement::NotIn(name, values) => !label(name).is_some_and(|value| values.iter().any(|one| one == value)),
            Requirement::Exists(name) => label(name).is_some(),
            Requirement::Missing(name) => label(name).is_none(),
        }) && self.fields.iter().all(|(path, equal, value)| (field(path) == value) == *equal)
    }
}

/// Splits at commas outside of parentheses.
fn split(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut depth = 0;
    let mut part = String::new();
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 { parts.push(std::mem::take(&mut part)) } else { part.push(c) }
    }
    parts.push(part);
    parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

fn requirement(part: &str) -> Result<Requirement, String> {
    if let Some((name, set)) = part.split_once(" in ").or_else(|| part.split_once(" notin ")) {
        let values = set.trim().trim_start_matches('(').trim_end_matches(')');
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let name = name.trim().to_owned();
        return Ok(if part.contains(" notin ") {
            Requirement::NotIn(name, values)
        } else {
            Requirement::In(name, values)
        });
    }
    if let Some((name, value)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(name.trim().to_owned(), vec![value.trim().to_owned()]));
    }
    if let Some((name, value)) = part.split_once('=') {
        let value = value.trim_start_matches('=').trim();
        return Ok(Requirement::In(name.trim().to_owned(), vec![value.to_owned()]));
    }
    let (name, missing) = match part.strip_prefix('!') {
        Some(name) => (name, true),
        None => (part, false),
    };
    if name.is_empty() || name.contains(' ') {
        return Err(format!("unable to parse requirement: {part}"));
    }
    Ok(if missing { Requirement::Missing(name.to_owned()) } else { Requirement::Exists(name.to_owned()) })
}
