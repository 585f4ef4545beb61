//! Checks a plan and names its generation.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::error::BuildError;
use crate::api::rag_index::ChunkingStrategy;
use crate::api::revision;
use crate::indexer::embed::Embedder;
use crate::indexer::job::BuildPlan;
use crate::indexer::store::FORMAT_VERSION;

const GENERATION_HEX: usize = 6;
/// The marks that the built-in model puts around a text.
const MARKS: usize = 2;

/// Reads a plan from JSON.
///
/// # Errors
/// When it is not a plan, or a name in it is not one.
pub fn parse(json: &str) -> Result<BuildPlan, BuildError> {
    let mut reader = serde_json::Deserializer::from_str(json);
    let plan: BuildPlan = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        invalid(format!("the plan in {}: {path}: {}", crate::indexer::job::PLAN_ENV, error.into_inner()))
    })?;
    let names =
        [("index", &plan.index)].into_iter().chain(plan.sources.iter().map(|source| ("sources[].name", &source.name)));
    let generations = plan.active.iter().chain(&plan.keep).map(|name| ("active or keep", name));
    for (field, name) in names.chain(generations) {
        let label = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if name.is_empty() || name.len() > 63 || !label || name.starts_with('-') {
            return Err(invalid(format!("the plan's {field} {name:?} is not a name of a-z, 0-9 and '-'")));
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    if let Some(twice) = plan.sources.iter().find(|source| !seen.insert(&source.name)) {
        return Err(invalid(format!("spec.sources has two named {}", twice.name)));
    }
    if plan.sources.len() > usize::from(u16::MAX) {
        return Err(invalid("spec.sources has too many entries".into()));
    }
    Ok(plan)
}

/// Checks what the model must be able to read.
///
/// # Errors
/// When chunks would be longer than the model reads.
pub fn check_lengths(plan: &BuildPlan, embedder: &Embedder, tokenizer: &Arc<Tokenizer>) -> Result<(), BuildError> {
    let Some(limit) = embedder.max_tokens() else { return Ok(()) };
    let prefix = tokenizer
        .encode_fast(plan.document_prefix.as_str(), false)
        .map_err(|error| BuildError::configuration("ModelUnusable", error.to_string()))?
        .len();
    let most = limit.saturating_sub(MARKS + prefix);
    let asked = plan.chunking.max_tokens.unsigned_abs() as usize;
    if plan.chunking.strategy != ChunkingStrategy::Whole && asked > most {
        return Err(invalid(format!(
            "spec.chunking.maxTokens {asked} is more than {} reads: {limit} with {MARKS} marks and {prefix} of spec.embedding.documentPrefix; use at most {most}",
            embedder.model()
        )));
    }
    Ok(())
}

/// Name of the generation: the index and the hash of all that decides its content.
///
/// # Errors
/// When the plan cannot be written as JSON.
pub fn generation_name(
    plan: &BuildPlan,
    source_revisions: &[(String, String)],
    model_digest: &str,
    tokenizer_digest: &str,
) -> Result<String, BuildError> {
    #[derive(Serialize)]
    struct Identity<'a> {
        content: Value,
        source_revisions: &'a [(String, String)],
        model_digest: &'a str,
        tokenizer_digest: &'a str,
        format_version: u32,
    }
    let unwritable = |error: serde_json::Error| invalid(format!("the plan cannot be written as JSON: {error}"));
    let mut content = serde_json::to_value(plan).map_err(unwritable)?;
    if let Some(fields) = content.as_object_mut() {
        // How it is judged, kept and batched does not change what it is.
        for steering in ["active", "keep", "history", "gates", "goldenDigest", "batch"] {
            fields.remove(steering);
        }
        // What documents hold is in the revisions; the digest of a ConfigMap also covers keys that are no documents.
        for source in fields.get_mut("sources").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(source) = source.as_object_mut() {
                source.remove("contentDigest");
            }
        }
    }
    let identity =
        Identity { content, source_revisions, model_digest, tokenizer_digest, format_version: FORMAT_VERSION };
    let text = revision::canonical(&identity).map_err(unwritable)?;
    Ok(format!("{}-{}", plan.index, revision::short(&text, GENERATION_HEX)))
}

fn invalid(message: String) -> BuildError {
    BuildError::configuration("InvalidSpec", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Value {
        serde_json::json!({
            "index": "handbook", "sources": [{"name": "docs", "include": ["**/*.md"]}], "parse": {}, "chunking": {},
            "embedder": "allMiniLmL6V2", "batch": 32, "retrieval": {}, "history": 3
        })
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut plan = plan();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        plan.pointer_mut(parent).unwrap()[key] = value;
        plan
    }

    fn name(plan: &Value) -> String {
        let plan = parse(&plan.to_string()).unwrap();
        generation_name(&plan, &[("docs".into(), "r1".into())], "sha256:m", "sha256:t").unwrap()
    }

    #[test]
    fn the_name_follows_content_and_nothing_else() {
        let base = name(&plan());
        assert!(base.starts_with("handbook-") && base.len() == "handbook-".len() + 6, "{base}");
        for (pointer, value) in [
            ("/active", "handbook-000000".into()),
            ("/keep", serde_json::json!(["handbook-000000"])),
            ("/history", 9.into()),
            ("/batch", 8.into()),
            ("/goldenDigest", "x".into()),
        ] {
            assert_eq!(name(&with(pointer, value)), base, "{pointer}");
        }
        for (pointer, value) in [
            ("/chunking/maxTokens", 100.into()),
            ("/retrieval/topK", 3.into()),
            ("/queryPrefix", "q: ".into()),
            ("/sources/0/tags", serde_json::json!({"a": "b"})),
        ] {
            assert_ne!(name(&with(pointer, value)), base, "{pointer}");
        }
        let plan = parse(&plan().to_string()).unwrap();
        let other = generation_name(&plan, &[("docs".into(), "r2".into())], "sha256:m", "sha256:t").unwrap();
        assert_ne!(other, base);
    }

    #[test]
    fn a_wrong_plan_names_the_field() {
        for (plan, part) in [
            (with("/sources", serde_json::json!([{"name": "../x", "include": []}])), "../x"),
            (with("/chunking/maxTokens", "many".into()), "chunking.maxTokens"),
            (with("/active", "../../etc".into()), "active"),
            (
                with("/sources", serde_json::json!([{"name": "a", "include": []}, {"name": "a", "include": []}])),
                "two named a",
            ),
        ] {
            let error = parse(&plan.to_string()).unwrap_err();
            assert!(error.to_string().contains(part) && error.reason() == "InvalidSpec", "{error}");
        }
    }
}
