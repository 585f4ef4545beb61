//! What the gateway has measured of a flow, as it tells it: sums per arm and stratum, clustered by unit.

use serde::{Deserialize, Serialize};

use crate::api::rollout::MetricKind;

/// Everything measured of a flow since a moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Measurements {
    /// Arms by stratum. Pinned requests are not among them; shadow copies are entries of their own.
    pub arms: Vec<ArmMeasurements>,
}

/// What was measured of one revision of one variant while one routing table held.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArmMeasurements {
    /// Name of the routing table, see [`stratum`]: the step of a rollout, or the weights of a split. Arms are only compared within one.
    pub stratum: String,
    /// The variant that the units were assigned to.
    pub variant: String,
    /// The revision that they were assigned to; answers by fallback models count for it, too.
    pub revision: String,
    /// Percent of units that this arm had in the table; what the sample ratio is checked against.
    pub weight: i32,
    /// Whether these are shadow copies that nobody saw.
    #[serde(default)]
    pub shadow: bool,
    /// Units with at least one request.
    pub units: u64,
    /// Requests.
    pub requests: u64,
    /// Metrics that were seen on at least one unit.
    pub metrics: Vec<MetricMeasurement>,
}

/// A metric of an arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricMeasurement {
    /// The metric.
    pub metric: MetricKind,
    /// Name of the event, with [`MetricKind::Event`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// Units that it was seen on. A unit counts once, with the mean of its requests (for events: 1 if it had the event, else 0).
    pub units: u64,
    /// Mean over the units.
    pub mean: f64,
    /// Sum of squared differences of the units from the mean.
    pub m2: f64,
}

/// Name of a routing table: the same entries in the same order have the same name, on every replica.
///
/// Entries are variant, revision and percent.
pub fn stratum<'a>(table: impl IntoIterator<Item = (&'a str, &'a str, i32)>) -> String {
    let text: Vec<String> =
        table.into_iter().map(|(variant, revision, weight)| format!("{variant}={revision}:{weight}")).collect();
    crate::api::revision::short(&text.join(";"), 10)
}
