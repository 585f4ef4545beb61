//! Metrics of the controllers. Labels are kinds, verbs and results only: no object's name, so their number is bounded.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// A reconcile of a controller, by its result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByResult {
    /// The controller.
    pub controller: &'static str,
    /// `ok`, `waiting`, `stalled`, `transient`, `conflict`, `not_leader` or `deadline`.
    pub result: &'static str,
}

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByController {
    /// The controller.
    pub controller: &'static str,
}

/// A kind of object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByKind {
    /// The kind.
    pub kind: &'static str,
}

/// A write to the API server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByWrite {
    /// Kind of the object.
    pub kind: &'static str,
    /// `create`, `apply`, `delete`, `status` or `event`.
    pub verb: &'static str,
    /// `ok` or `error`.
    pub result: &'static str,
}

/// All metrics of the controller process.
#[derive(Clone)]
pub struct Metrics {
    /// Reconciles.
    pub reconciles: Family<ByResult, Counter>,
    /// Their duration in seconds.
    pub duration: Family<ByController, Histogram, fn() -> Histogram>,
    /// Objects that wait for their turn now or later.
    pub queued: Family<ByController, Gauge>,
    /// Writes to the API server.
    pub writes: Family<ByWrite, Counter>,
    /// Objects in the caches.
    pub cached: Family<ByKind, Gauge>,
    /// Failures of watches.
    pub watch_errors: Family<ByKind, Counter>,
    /// 1 while this process leads.
    pub leader: Gauge,
}

fn seconds() -> Histogram {
    Histogram::new([0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 30.0])
}

impl Metrics {
    /// Registers all metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            reconciles: Family::default(),
            duration: Family::new_with_constructor(seconds),
            queued: Family::default(),
            writes: Family::default(),
            cached: Family::default(),
            watch_errors: Family::default(),
            leader: Gauge::default(),
        };
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("llmops_build", "Version of the binary", build);
        registry.register("llmops_controller_reconciles", "Reconciles by result", metrics.reconciles.clone());
        registry.register(
            "llmops_controller_reconcile_duration_seconds",
            "Duration of reconciles",
            metrics.duration.clone(),
        );
        registry.register("llmops_controller_queue", "Objects with a reconcile scheduled", metrics.queued.clone());
        registry.register("llmops_controller_writes", "Writes to the API server", metrics.writes.clone());
        registry.register("llmops_controller_cached_objects", "Objects in the watch caches", metrics.cached.clone());
        registry.register("llmops_controller_watch_errors", "Failures of watches", metrics.watch_errors.clone());
        registry.register("llmops_controller_leader", "1 while this process leads", metrics.leader.clone());
        metrics
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}
