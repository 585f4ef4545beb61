//! Pins: exactly these revisions, whatever the routing tables say. Pure.

use std::collections::BTreeMap;

use crate::gateway::error::ApiError;

/// What a request pins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// Revision of the flow.
    pub flow: Option<String>,
    /// Revisions of ModelDeployments by name.
    pub models: BTreeMap<String, String>,
    /// Generations of RagIndexes by name.
    pub indexes: BTreeMap<String, String>,
}

impl Pins {
    /// Reads the header `llmops-pin`, such as `flow=REV;model/NAME=REV;index/NAME=GEN`.
    ///
    /// # Errors
    /// 400 when it has another form.
    pub fn parse(header: &str) -> Result<Self, ApiError> {
        let mut pins = Self::default();
        for part in header.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let wrong = || {
                ApiError::invalid(
                    "llmops-pin",
                    format!(
                        "cannot read {part:?} in the header llmops-pin; write flow=REVISION, model/NAME=REVISION or index/NAME=GENERATION, joined by ';'"
                    ),
                )
            };
            let (what, revision) = part.split_once('=').ok_or_else(wrong)?;
            let (what, revision) = (what.trim(), revision.trim());
            let known =
                |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
            if !known(revision) {
                return Err(wrong());
            }
            match what.split_once('/') {
                None if what == "flow" => pins.flow = Some(revision.to_owned()),
                Some(("model", name)) if known(name) => drop(pins.models.insert(name.to_owned(), revision.to_owned())),
                Some(("index", name)) if known(name) => drop(pins.indexes.insert(name.to_owned(), revision.to_owned())),
                _ => return Err(wrong()),
            }
        }
        Ok(pins)
    }

    /// Whether nothing is pinned.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_documented_form() {
        let pins = Pins::parse("flow=abc; model/smollm2=def ;index/docs=docs-0123").unwrap();
        assert_eq!(pins.flow.as_deref(), Some("abc"));
        assert_eq!(pins.models["smollm2"], "def");
        assert_eq!(pins.indexes["docs"], "docs-0123");
        assert!(Pins::parse("").unwrap().is_empty());
        for wrong in ["flow", "flow=", "flows=a", "model/=a", "model=a", "index/x=a b", "flow=a,model/x=b"] {
            assert_eq!(Pins::parse(wrong).unwrap_err().param.as_deref(), Some("llmops-pin"), "{wrong}");
        }
    }
}
