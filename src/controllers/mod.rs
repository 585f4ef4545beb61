//! The controllers of the four kinds and the machinery that they share.
//!
//! # How to add a controller
//!
//! A controller is a type that implements [`pipeline::Controller`]; everything else is here already. The stages live
//! in files of their names in the controller's folder; only `fetch` may do I/O, the others are pure functions:
//!
//! ```ignore
//! pub struct Things { image: String }                      // settings only: no client, no clock
//!
//! impl Controller for Things {
//!     type Object = Thing;                                  // one of our kinds
//!     type Fetched = Fetched;                               // e.g. { secret: Option<Arc<Secret>>, jobs: Vec<Job>, pods: Vec<Pod> }
//!     type Validated = ValidatedThing;
//!     type Notes = Notes;                                   // what build tells status, e.g. which Job is the current one
//!     const NAME: &'static str = "thing";
//!     const FIELD_MANAGER: &'static str = "llmops-thing";
//!
//!     fn references(object: &Thing) -> Vec<Reference> {
//!         vec![Reference::new(Kind::Secret, &object.spec.secret_ref.name)]
//!     }
//!     async fn fetch(&self, scope: &Scope<'_>, object: &Thing) -> Result<Fetched, Error> {
//!         Ok(Fetched {
//!             secret: scope.secret(&object.spec.secret_ref.name).await?,      // read once a version
//!             model: scope.get::<ModelDeployment>("m")?,                      // from the watch caches
//!             jobs: scope.children::<Job>()?,                                 // owned by this object
//!             pods: scope.children::<Pod>()?,                                 // by labels component + owner
//!         })
//!     }
//!     fn validate(&self, object: &Thing, fetched: &Fetched) -> Result<ValidatedThing, Error> {
//!         let Some(secret) = &fetched.secret else {
//!             let on = Reference::new(Kind::Secret, &object.spec.secret_ref.name);
//!             return Err(Error::waiting(on, "SecretNotFound", "spec.secretRef: there is no Secret …; create it"));
//!         };
//!         …                                                  // spec faults: Err(Error::stalled("InvalidSpec", "spec.x: …"))
//!     }
//!     fn build(&self, object: &Thing, fetched: &Fetched, valid: &ValidatedThing, now: Timestamp) -> Result<Plan<Thing, Notes>, Error> {
//!         Ok(Plan {
//!             record: None,                                  // Some(status) to be written before anything is taken down
//!             desired: vec![Desired::once(&job)?, Desired::new(&service)?],   // typed objects: name, labels, spec
//!             removals: vec![Removal::new(Kind::Job, old_name)],
//!             notes,
//!         })
//!     }
//!     fn status(&self, view: &View<'_, Self>) -> Verdict<Thing> {
//!         let mut status = view.previous.clone();
//!         let observed = match &view.stage {
//!             Stage::Suspended => …,
//!             Stage::Failed { error, .. } => …,              // error.reason(), error.to_string()
//!             Stage::Done { applied, .. } => …,              // applied.live::<Service>(name)
//!         };
//!         status.conditions = conditions::merge(&view.previous.conditions, &observed, generation, view.now);
//!         Verdict::new(status)
//!     }
//! }
//! ```
//!
//! Then register it in [`start`]. The machinery sees to the rest: watches of children and references, debounce, one
//! run at a time for an object, back-off, deadline, leadership before every write, change detection, status written
//! only when it differs, events on transitions of `Stalled` and `Ready`, metrics and logs.
//!
//! # Permissions
//!
//! Cluster-wide, or in the watched namespace:
//!
//! | group | resources | verbs |
//! | --- | --- | --- |
//! | `llmops.dev` | modeldeployments, ragindexes, promptflows, evaluations | get, list, watch |
//! | `llmops.dev` | the four with `/status` | patch |
//! | `llmops.dev` | the four with `/finalizers` | update (owner references with blockOwnerDeletion) |
//! | `apps` | deployments, controllerrevisions | get, list, watch, create, patch, delete |
//! | `batch` | jobs | get, list, watch, create, patch, delete |
//! | (core) | services, persistentvolumeclaims, serviceaccounts | get, list, watch, create, patch, delete |
//! | `rbac.authorization.k8s.io` | rolebindings | get, list, watch, create, patch, delete |
//! | `rbac.authorization.k8s.io` | clusterroles, only `llmops-evaluator` | bind |
//! | (core) | pods, configmaps, secrets | get, list, watch |
//! | `events.k8s.io` | events | create |
//!
//! In its own namespace: `coordination.k8s.io` leases: get, create, update.

pub mod admin;
pub mod apply;
pub mod backoff;
pub mod cache;
pub mod clock;
pub mod contents;
pub mod error;
pub mod evaluation;
pub mod events;
pub mod kinds;
pub mod leadership;
pub mod lease;
pub mod measure;
pub mod metrics;
pub mod model_deployment;
pub mod pipeline;
mod pods;
pub mod prompt_flow;
pub mod rag_index;
mod raw;
pub mod references;
mod run;
pub mod schedule;
pub mod status;
pub mod subset;
mod watches;
mod worker;
pub mod workload;
pub mod writer;

pub use run::{Args, Config, StartError, run, start};
