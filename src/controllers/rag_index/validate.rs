//! Spec and references → the plan of a build and its hash, pure. A fault here never stops what serves: it is carried
//! along as the reason why there is no plan.

use std::collections::{BTreeMap, BTreeSet};

use globset::Glob;

use super::Fetched;
use super::status::reason;
use crate::api::conditions;
use crate::api::model_deployment::Task;
use crate::api::quantity::Decimal;
use crate::api::rag_index::{ChunkingStrategy, RagIndexSpec, Source};
use crate::api::refs::ConfigMapKeyRef;
use crate::api::{ModelDeployment, RagIndex, names};
use crate::indexer::job::{BuildPlan, Embedder, PlannedSource, content_digest, golden_digest};

/// An index after its checks.
#[derive(Debug)]
pub struct Validated {
    /// What to build, or why nothing can be.
    pub inputs: Result<Inputs, Blocked>,
    /// Value of the reconcile annotation.
    pub requested: Option<String>,
}

/// What decides a generation.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The plan without what only steers the run.
    pub plan: BuildPlan,
    /// Its hash.
    pub hash: String,
    /// What the builder reads, in the order of the sources.
    pub mounts: Vec<Mount>,
    /// Where the golden questions are.
    pub golden: Option<ConfigMapKeyRef>,
}

/// Where a source's files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// A ConfigMap.
    ConfigMap(String),
    /// A volume claim.
    Claim(String),
}

/// Which condition says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// `Accepted`: the spec itself.
    Spec,
    /// `SourcesReady`: sources and golden questions.
    Sources,
    /// `EmbedderCompatible`: the embedding model.
    Embedder,
}

/// Why nothing can be built now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// Which condition says it.
    pub subject: Subject,
    /// CamelCase reason.
    pub reason: &'static str,
    /// A sentence that names the field and the fix.
    pub message: String,
}

impl Blocked {
    fn spec(problems: &[String]) -> Self {
        Self { subject: Subject::Spec, reason: reason::INVALID_SPEC, message: problems.join("; ") }
    }
    fn source(reason: &'static str, message: String) -> Self {
        Self { subject: Subject::Sources, reason, message }
    }
    fn embedder(reason: &'static str, message: String) -> Self {
        Self { subject: Subject::Embedder, reason, message }
    }

    /// Whether only another spec helps; otherwise another object is waited for.
    pub fn is_final(&self) -> bool {
        self.subject == Subject::Spec || self.reason == reason::MODEL_TASK_MISMATCH
    }
}

/// Checks an index and plans its build.
pub fn validate(object: &RagIndex, fetched: &Fetched) -> Validated {
    let annotations = object.metadata.annotations.as_ref();
    let requested = annotations.and_then(|annotations| annotations.get(names::ANNOTATION_RECONCILE)).cloned();
    Validated { inputs: inputs(object, fetched, requested.as_deref()), requested }
}

/// Checks what can be said of a spec alone; each problem names its field. `llmops validate` runs the same.
pub fn check(spec: &RagIndexSpec) -> Vec<String> {
    let mut found = Vec::new();
    if spec.sources.is_empty() {
        found.push("spec.sources: name at least one source".to_owned());
    }
    let mut names = BTreeSet::new();
    for (index, source) in spec.sources.iter().enumerate() {
        check_source(source, &format!("spec.sources[{index}]"), &mut names, &mut found);
    }
    let chunking = &spec.chunking;
    if chunking.strategy != ChunkingStrategy::Whole
        && i64::from(chunking.overlap_tokens) * 2 > i64::from(chunking.max_tokens)
    {
        found.push(format!(
            "spec.chunking.overlapTokens: {} is above half of maxTokens ({}); lower it",
            chunking.overlap_tokens, chunking.max_tokens
        ));
    }
    if spec.embedding.model_ref.is_some() && spec.embedding.builtin.is_some() {
        found.push("spec.embedding: set one of modelRef and builtin, not both".to_owned());
    }
    let retrieval = &spec.retrieval;
    if retrieval.candidates < retrieval.top_k {
        found.push(format!(
            "spec.retrieval.candidates: {} is below topK ({}); raise it",
            retrieval.candidates, retrieval.top_k
        ));
    }
    let weights = &retrieval.fusion.rrf.weights;
    for (name, weight) in [("dense", &weights.dense), ("bm25", &weights.bm25)] {
        within(Some(weight), 0.0, 1000.0, &format!("spec.retrieval.fusion.rrf.weights.{name}"), &mut found);
    }
    if let Some(gates) = &spec.gates {
        if !gates.metrics.is_empty() && gates.golden.is_none() {
            found.push(
                "spec.gates.metrics: needs spec.gates.golden, the questions with their relevant documents".to_owned(),
            );
        }
        for (index, metric) in gates.metrics.iter().enumerate() {
            let field = format!("spec.gates.metrics[{index}]");
            if metric.min.is_none() && metric.max_regression.is_none() {
                found.push(format!("{field}: set min, maxRegression or both"));
            }
            within(metric.min.as_ref(), 0.0, 1.0, &format!("{field}.min"), &mut found);
            within(metric.max_regression.as_ref(), 0.0, 1.0, &format!("{field}.maxRegression"), &mut found);
        }
    }
    found
}

fn check_source<'a>(source: &'a Source, field: &str, names: &mut BTreeSet<&'a str>, found: &mut Vec<String>) {
    if !names.insert(source.name.as_str()) {
        found.push(format!("{field}.name: another source is named `{}` already", source.name));
    }
    if source.config_map.is_some() == source.pvc.is_some() {
        found.push(format!("{field}: set exactly one of configMap and pvc"));
    }
    if let Some(pvc) = &source.pvc
        && (pvc.path.starts_with('/') || pvc.path.split('/').any(|part| part == ".."))
    {
        found.push(format!("{field}.pvc.path: `{}` must be relative and without `..`", pvc.path));
    }
    for (list, patterns) in [("include", &source.include), ("exclude", &source.exclude)] {
        for (index, pattern) in patterns.iter().enumerate() {
            if let Err(error) = Glob::new(pattern) {
                found.push(format!("{field}.{list}[{index}]: `{pattern}` is no pattern: {}", error.kind()));
            }
        }
    }
}

fn within(decimal: Option<&Decimal>, min: f64, max: f64, field: &str, found: &mut Vec<String>) {
    let Some(decimal) = decimal else { return };
    if !decimal.value().is_some_and(|value| (min..=max).contains(&value)) {
        found.push(format!("{field}: `{decimal}` must be a number from {min} to {max}, written as a string"));
    }
}

fn inputs(object: &RagIndex, fetched: &Fetched, requested: Option<&str>) -> Result<Inputs, Blocked> {
    let spec = &object.spec;
    let problems = check(spec);
    if !problems.is_empty() {
        return Err(Blocked::spec(&problems));
    }
    let mut sources = Vec::new();
    let mut mounts = Vec::new();
    for (index, source) in spec.sources.iter().enumerate() {
        let (planned, mount) = planned(source, &format!("spec.sources[{index}]"), fetched)?;
        sources.push(planned);
        mounts.push(mount);
    }
    let golden = spec.gates.as_ref().and_then(|gates| gates.golden.as_ref()).map(|golden| &golden.config_map_ref);
    let golden_digest = golden.map(|golden| digest_of_golden(golden, fetched)).transpose()?;
    let embedder = embedder(object, fetched)?;
    let plan = BuildPlan {
        index: object.metadata.name.clone().unwrap_or_default(),
        sources,
        parse: spec.parse.clone(),
        chunking: spec.chunking.clone(),
        embedder,
        query_prefix: spec.embedding.query_prefix.clone(),
        document_prefix: spec.embedding.document_prefix.clone(),
        batch: u32::try_from(spec.embedding.batch).unwrap_or(1).max(1),
        retrieval: spec.retrieval.clone(),
        gates: spec.gates.clone(),
        golden_digest,
        active: None,
        keep: Vec::new(),
        history: u32::try_from(spec.generations.history).unwrap_or(0),
    };
    // What a volume holds is seen by the builder alone: a new value of the annotation asks it to look again.
    let unseen = mounts.iter().any(|mount| matches!(mount, Mount::Claim(_)));
    let hash = plan
        .inputs(requested.filter(|_| unseen))
        .map_err(|error| Blocked::spec(&[format!("spec: cannot be written as JSON: {error}")]))?;
    Ok(Inputs { plan, hash, mounts, golden: golden.cloned() })
}

fn planned(source: &Source, field: &str, fetched: &Fetched) -> Result<(PlannedSource, Mount), Blocked> {
    let of = |path: String, content_digest: Option<String>| PlannedSource {
        name: source.name.clone(),
        path,
        content_digest,
        include: source.include.clone(),
        exclude: source.exclude.clone(),
        tags: source.tags.clone(),
    };
    if let Some(pvc) = &source.pvc {
        let claim = &pvc.claim_name;
        if !fetched.claims.contains(claim) {
            return Err(Blocked::source(
                reason::VOLUME_NOT_FOUND,
                format!(
                    "{field}.pvc.claimName: there is no PersistentVolumeClaim `{claim}` in the namespace; create it"
                ),
            ));
        }
        return Ok((of(pvc.path.clone(), None), Mount::Claim(claim.clone())));
    }
    let name = source.config_map.as_ref().map(|map| map.name.as_str()).unwrap_or_default();
    let Some(map) = fetched.config_maps.get(name) else {
        return Err(Blocked::source(
            reason::CONFIG_MAP_NOT_FOUND,
            format!("{field}.configMap.name: there is no ConfigMap `{name}` in the namespace; create it"),
        ));
    };
    // Files of unknown encoding would be mounted beside the text, unseen by the digest.
    if let Some(key) = map.binary_data.iter().flatten().map(|(key, _)| key).next() {
        return Err(Blocked::source(
            reason::SOURCE_NOT_TEXT,
            format!(
                "{field}.configMap: ConfigMap `{name}` has the key `{key}` under binaryData; documents must be text, under data"
            ),
        ));
    }
    let empty = BTreeMap::new();
    let digest = content_digest(map.data.as_ref().unwrap_or(&empty))
        .map_err(|error| Blocked::spec(&[format!("{field}: ConfigMap `{name}` cannot be written as JSON: {error}")]))?;
    Ok((of(String::new(), Some(digest)), Mount::ConfigMap(name.to_owned())))
}

fn digest_of_golden(golden: &ConfigMapKeyRef, fetched: &Fetched) -> Result<String, Blocked> {
    let field = "spec.gates.golden.configMapRef";
    let Some(map) = fetched.config_maps.get(&golden.name) else {
        return Err(Blocked::source(
            reason::CONFIG_MAP_NOT_FOUND,
            format!("{field}: there is no ConfigMap `{}` in the namespace; create it", golden.name),
        ));
    };
    match map.data.as_ref().and_then(|data| data.get(&golden.key)) {
        Some(text) => Ok(golden_digest(text)),
        None => Err(Blocked::source(
            reason::CONFIG_MAP_KEY_NOT_FOUND,
            format!("{field}: ConfigMap `{}` has no key `{}`; add it", golden.name, golden.key),
        )),
    }
}

fn embedder(object: &RagIndex, fetched: &Fetched) -> Result<Embedder, Blocked> {
    let Some(reference) = &object.spec.embedding.model_ref else { return Ok(Embedder::AllMiniLmL6V2) };
    let name = &reference.name;
    let field = "spec.embedding.modelRef";
    let Some(model) = &fetched.model else {
        return Err(Blocked::embedder(
            reason::MODEL_NOT_FOUND,
            format!("{field}: there is no ModelDeployment `{name}` in the namespace; create it"),
        ));
    };
    if model.spec.task != Task::Embed {
        return Err(Blocked::embedder(
            reason::MODEL_TASK_MISMATCH,
            format!("{field}: ModelDeployment `{name}` has task {:?}; name one with task Embed", model.spec.task),
        ));
    }
    if model.spec.external.as_ref().is_some_and(|external| external.credentials_ref.is_some()) {
        return Err(Blocked::spec(&[format!(
            "{field}: ModelDeployment `{name}` is a provider that needs credentials, which index pods do not get; name one that runs in the cluster"
        )]));
    }
    served(model, object.metadata.namespace.as_deref().unwrap_or_default()).ok_or_else(|| {
        Blocked::embedder(
            reason::MODEL_NOT_READY,
            format!("{field}: ModelDeployment `{name}` has no revision that serves yet; `kubectl describe mdep {name}` says why"),
        )
    })
}

fn served(model: &ModelDeployment, namespace: &str) -> Option<Embedder> {
    let status = model.status.as_ref()?;
    let revision = status.stable_revision.clone()?;
    // Once it served, a pod that is down for a moment is the builder's business: it tries again.
    let name = model.metadata.name.as_deref().unwrap_or_default();
    let inside = || format!("http://{}.{namespace}.svc:8080/v1", names::model_service(name));
    let external = model.spec.external.as_ref();
    conditions::find(&status.conditions, "Ready")?;
    Some(Embedder::OpenAi {
        base_url: external.map_or_else(inside, |external| external.base_url.clone()),
        model: external.map_or_else(
            || model.spec.model.as_ref().and_then(|model| model.name.clone()).unwrap_or_else(|| name.to_owned()),
            |external| external.model.clone(),
        ),
        revision,
    })
}
