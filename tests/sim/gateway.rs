//! The gateway, as the operator asks it for measurements.

use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use llmops::api::rollout::MetricKind;
use llmops::controllers::measure::{Measure, MeasureError, Of};
use llmops::experiment::measurements::{ArmMeasurements, Measurements, MetricMeasurement, stratum};
use serde_json::Value;

use crate::apiserver::ApiServer;
use crate::cluster::{number, text};

/// Units that have come under every routing table, as soon as it holds.
const UNITS: u64 = 4000;
/// Share of thumbs up of an ordinary revision.
const USUAL: f64 = 0.6;

/// How users like a revision, by the content of its ControllerRevision: the share of thumbs up.
type Taste = Box<dyn Fn(&str) -> f64 + Send>;

/// The gateway of a cluster.
#[derive(Clone)]
pub struct Gateway {
    server: ApiServer,
    taste: Arc<Mutex<Option<Taste>>>,
    down: Arc<Mutex<bool>>,
}

impl Gateway {
    /// A gateway whose users like everything equally well.
    pub fn new(server: &ApiServer) -> Self {
        Self { server: server.clone(), taste: Arc::default(), down: Arc::default() }
    }

    /// Says how users like a revision, by its content.
    pub fn users(&self, taste: impl Fn(&str) -> f64 + Send + 'static) {
        *self.taste.lock().expect("no panic with the lock held") = Some(Box::new(taste));
    }

    /// Whether it answers.
    pub fn down(&self, down: bool) {
        *self.down.lock().expect("no panic with the lock held") = down;
    }

    fn answer(&self, namespace: &str, flow: &str) -> Result<Measurements, MeasureError> {
        if *self.down.lock().expect("no panic with the lock held") {
            return Err(MeasureError::Unreachable { url: "http://gateway".into(), cause: "connection refused".into() });
        }
        let Some(object) = self.server.get("PromptFlow", namespace, flow) else { return Ok(Measurements::default()) };
        let traffic = object["status"]["traffic"].as_array().cloned().unwrap_or_default();
        let weight = |arm: &Value| i32::try_from(number(arm, "/weight")).expect("weights are percents");
        let name = stratum(traffic.iter().map(|arm| (text(arm, "/variant"), text(arm, "/revision"), weight(arm))));
        let arms = traffic.iter().map(|arm| self.arm(namespace, flow, &name, arm, weight(arm))).collect();
        Ok(Measurements { arms })
    }

    fn arm(&self, namespace: &str, flow: &str, stratum: &str, arm: &Value, weight: i32) -> ArmMeasurements {
        let revision = text(arm, "/revision");
        let content = self.server.get("ControllerRevision", namespace, &format!("pf-{flow}-{revision}"));
        let content = content.map(|object| object["data"].to_string()).unwrap_or_default();
        let taste = self.taste.lock().expect("no panic with the lock held");
        let mean = taste.as_ref().map_or(USUAL, |taste| taste(&content));
        let units = UNITS * u64::try_from(weight).unwrap_or(0) / 100;
        let metric = |metric, mean: f64| MetricMeasurement {
            metric,
            event: None,
            units,
            mean,
            m2: mean * (1.0 - mean) * units as f64,
        };
        ArmMeasurements {
            stratum: stratum.to_owned(),
            variant: text(arm, "/variant").to_owned(),
            revision: revision.to_owned(),
            weight,
            shadow: false,
            units,
            requests: units,
            metrics: vec![metric(MetricKind::Thumbs, mean), metric(MetricKind::ErrorRate, 0.0)],
        }
    }
}

impl Measure for Gateway {
    fn measure<'a>(
        &'a self,
        namespace: &'a str,
        of: Of<'a>,
        _: Timestamp,
    ) -> BoxFuture<'a, Result<Measurements, MeasureError>> {
        async move {
            match of {
                Of::Flow(name) => self.answer(namespace, name),
                // Ramps of models are told by no story.
                Of::Model(_) => Ok(Measurements::default()),
            }
        }
        .boxed()
    }
}
