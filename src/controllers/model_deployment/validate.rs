//! Checks a ModelDeployment, pure. Also run offline, so it repeats what the API server checks by CEL.

use crate::api::model_deployment::{
    Cost, Engine, EngineType, External, ModelDeployment, ModelDeploymentSpec, ModelSource, RolloutStrategy,
};
use crate::api::names::MAX_NAME;
use crate::controllers::error::Error;
use crate::controllers::kinds::{Kind, Reference};

use super::fetch::{Credentials, Fetched};
use super::reasons;
use super::revision;

/// What the spec asks for, checked.
#[derive(Clone, Debug)]
pub enum Validated {
    /// A provider outside.
    External {
        /// Name of the revision.
        revision: String,
    },
    /// An engine in the cluster. What runs already is kept up although the wanted revision may be faulty.
    Engine {
        /// What the spec asks for, or what is wrong with it.
        target: Result<Target, Error>,
    },
}

/// A revision that the spec asks for.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name of the revision.
    pub revision: String,
    /// Its content.
    pub content: serde_json::Value,
}

/// Checks the spec alone.
///
/// # Errors
/// [`Error::Stalled`] that names the field and the fix.
pub fn check(object: &ModelDeployment) -> Result<(), Error> {
    let spec = &object.spec;
    let name = object.metadata.name.as_deref().unwrap_or_default();
    if name.len() > MAX_NAME {
        return invalid(format!("metadata.name has {} characters; at most {MAX_NAME} are possible", name.len()));
    }
    match (&spec.engine, &spec.external) {
        (Some(engine), None) => check_engine(spec, engine)?,
        (None, Some(external)) => check_external(spec, external)?,
        _ => {
            return invalid(
                "set exactly one of spec.engine (a model that the operator runs) and spec.external (a provider outside)",
            );
        }
    }
    if let Some(cost) = &spec.cost {
        check_cost(cost)?;
    }
    Ok(())
}

fn check_engine(spec: &ModelDeploymentSpec, engine: &Engine) -> Result<(), Error> {
    let source = spec.model.as_ref().and_then(|model| model.source.as_ref());
    match engine.r#type {
        EngineType::LlamaCpp if source.is_none() => {
            return invalid("spec.model.source is required for engine type LlamaCpp: it says where the GGUF file is");
        }
        EngineType::LlamaCpp if engine.custom.is_some() => {
            return invalid("spec.engine.custom is only for type Custom; remove it");
        }
        EngineType::Custom if engine.custom.is_none() || engine.image.is_none() => {
            return invalid("engine type Custom needs spec.engine.image and spec.engine.custom (port and healthPath)");
        }
        _ => {}
    }
    if let Some(source) = source {
        check_source(source, engine.r#type)?;
    }
    if spec.replicas < 0 {
        return invalid("spec.replicas must not be negative");
    }
    for (field, duration, least) in [
        ("spec.startup.downloadTimeout", spec.startup.download_timeout, 1),
        ("spec.startup.loadTimeout", spec.startup.load_timeout, 1),
        ("spec.rollout.drain", spec.rollout.drain, 0),
    ] {
        let seconds = std::time::Duration::from(duration).as_secs();
        if duration.is_negative() || seconds < least || seconds > 24 * 3600 {
            return invalid(format!("{field} must be between {least}s and 24h"));
        }
    }
    if spec.pod_template_patch.as_ref().is_some_and(|patch| !patch.is_object()) {
        return invalid("spec.podTemplatePatch must be an object with members such as metadata and spec");
    }
    Ok(())
}

fn check_source(source: &ModelSource, engine: EngineType) -> Result<(), Error> {
    match (&source.pvc, &source.http) {
        (Some(pvc), None) => {
            if pvc.path.split('/').any(|part| part == "..") {
                return invalid("spec.model.source.pvc.path must not contain '..'");
            }
            if engine == EngineType::LlamaCpp && pvc.path.trim_matches('/').is_empty() {
                return invalid(
                    "spec.model.source.pvc.path is required for engine type LlamaCpp: it names the GGUF file in the volume",
                );
            }
            Ok(())
        }
        (None, Some(http)) => {
            if !http.url.starts_with("http://") && !http.url.starts_with("https://") {
                return invalid("spec.model.source.http.url must start with http:// or https://");
            }
            if http.sha256.len() != 64
                || !http.sha256.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
            {
                return invalid(
                    "spec.model.source.http.sha256 must be 64 lower-case hex characters (run sha256sum on the file)",
                );
            }
            Ok(())
        }
        _ => invalid("set exactly one of spec.model.source.pvc and spec.model.source.http"),
    }
}

fn check_external(spec: &ModelDeploymentSpec, external: &External) -> Result<(), Error> {
    if !external.base_url.starts_with("http://") && !external.base_url.starts_with("https://") {
        return invalid("spec.external.baseUrl must start with http:// or https://");
    }
    if !super::build::guarded::plan(&spec.rollout).is_immediate() {
        return invalid(
            "spec.rollout: a provider outside has one revision at a time, so gates, steps and promotion Manual have no use beside spec.external; remove them",
        );
    }
    if spec.model.as_ref().is_some_and(|model| model.source.is_some()) {
        return invalid("spec.model.source has no use beside spec.external; remove it");
    }
    Ok(())
}

fn check_cost(cost: &Cost) -> Result<(), Error> {
    for (field, value) in [("inputPerMillion", &cost.input_per_million), ("outputPerMillion", &cost.output_per_million)]
    {
        if value.value().is_none_or(|number| number < 0.0) {
            return invalid(format!("spec.cost.{field} must be a decimal number of at least 0, such as \"0.80\""));
        }
    }
    Ok(())
}

fn invalid<T>(message: impl Into<String>) -> Result<T, Error> {
    Err(Error::stalled(reasons::INVALID_SPEC, message))
}

/// Checks the spec and what it refers to.
///
/// # Errors
/// Only for a provider outside; faults of an engine's spec are in the result, so that what runs is kept up.
pub fn validate(object: &ModelDeployment, fetched: &Fetched) -> Result<Validated, Error> {
    let checked =
        check(object).and_then(|()| check_references(&object.spec, fetched)).and_then(|()| target(object, fetched));
    if object.spec.engine.is_none() && object.spec.external.is_some() {
        return checked.map(|target| Validated::External { revision: target.revision });
    }
    Ok(Validated::Engine { target: checked })
}

fn target(object: &ModelDeployment, fetched: &Fetched) -> Result<Target, Error> {
    let credentials = match &fetched.credentials {
        Credentials::Hash(hash) => Some(hash.as_str()),
        _ => None,
    };
    let unwritable =
        |error: serde_json::Error| Error::stalled(reasons::INVALID_SPEC, format!("the spec cannot be read: {error}"));
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let content = revision::content(&object.spec, name, credentials).map_err(unwritable)?;
    Ok(Target { revision: revision::name_of(&content).map_err(unwritable)?, content })
}

fn check_references(spec: &ModelDeploymentSpec, fetched: &Fetched) -> Result<(), Error> {
    let (field, reference) = match (&spec.external, &spec.model) {
        (Some(external), _) => ("spec.external.credentialsRef", external.credentials_ref.as_ref()),
        (None, Some(model)) => ("spec.model.credentialsRef", model.credentials_ref.as_ref()),
        _ => ("", None),
    };
    if let Some(reference) = reference {
        let on = || Reference::new(Kind::Secret, reference.name.as_str());
        match fetched.credentials {
            Credentials::Missing => {
                let message = format!(
                    "{field}: there is no Secret {:?} in this namespace; create it with the key \"token\"",
                    reference.name
                );
                return Err(Error::waiting(on(), reasons::SECRET_NOT_FOUND, message));
            }
            Credentials::NoToken => {
                let message = format!("{field}: Secret {:?} has no key \"token\"; add it", reference.name);
                return Err(Error::waiting(on(), reasons::SECRET_NOT_FOUND, message));
            }
            Credentials::NotNeeded | Credentials::Hash(_) => {}
        }
    }
    let pvc = spec.model.as_ref().and_then(|model| model.source.as_ref()).and_then(|source| source.pvc.as_ref());
    if let Some(pvc) = pvc
        && !fetched.volume_exists
    {
        let message = format!(
            "spec.model.source.pvc.claimName: there is no PersistentVolumeClaim {:?} in this namespace; create it",
            pvc.claim_name
        );
        let on = Reference::new(Kind::PersistentVolumeClaim, pvc.claim_name.as_str());
        return Err(Error::waiting(on, reasons::VOLUME_NOT_FOUND, message));
    }
    Ok(())
}

/// Whether the old revision stops before the new one starts.
pub fn stops_first(spec: &ModelDeploymentSpec) -> bool {
    spec.rollout.strategy == RolloutStrategy::Recreate
}
