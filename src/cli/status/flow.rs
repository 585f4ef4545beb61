//! How a PromptFlow stands.

use jiff::Timestamp;

use super::canvas::{Canvas, Tone, bar, fit};
use super::{Drawn, Outcome, is, rollout, trouble};
use crate::api::PromptFlow;
use crate::api::prompt_flow::{FlowPhase, FlowTraffic};
use crate::api::rollout::Promotion;

impl Drawn for PromptFlow {
    fn draw(&self, canvas: &mut Canvas, now: Timestamp) {
        let Some(status) = &self.status else { return super::unseen(canvas, self) };
        let (state, tone) = match status.phase {
            Some(FlowPhase::Serving) => ("Serving", Tone::Good),
            Some(FlowPhase::Progressing) => ("Progressing", Tone::Busy),
            Some(FlowPhase::Holding) => ("Holding", Tone::Busy),
            Some(FlowPhase::Waiting) => ("Waiting", Tone::Busy),
            Some(FlowPhase::Degraded) => ("Degraded", Tone::Bad),
            Some(FlowPhase::Failed) => ("Failed", Tone::Bad),
            Some(FlowPhase::Suspended) => ("Suspended", Tone::Busy),
            None => ("Unknown", Tone::Busy),
        };
        super::head(canvas, self, status.observed_generation, state, tone);
        let running = status.rollout.as_ref().filter(|rollout| rollout::is_under_way(rollout.phase));
        let told = match running {
            Some(rollout) if tone == Tone::Busy && !rollout.message.is_empty() => rollout.message.clone(),
            _ => trouble(&status.conditions),
        };
        canvas.prose(0, Tone::Plain, &told);

        if !status.traffic.is_empty() {
            canvas.section("Traffic", status.url.as_deref().unwrap_or_default());
        }
        for (arm, weight) in merged(&status.traffic) {
            let in_stable =
                status.stable.iter().any(|known| known.variant == arm.variant && known.revision == arm.revision);
            let role = match running {
                Some(_) if in_stable => "stable",
                Some(_) => "candidate",
                None => "",
            };
            canvas.line(&[
                (Tone::Plain, "  "),
                (Tone::Plain, &fit(&arm.variant, 16)),
                (Tone::Plain, " "),
                (Tone::Strong, &fit(&arm.revision, 12)),
                (Tone::Plain, &format!("{} {weight:>3}%  ", bar(f64::from(weight) / 100.0, 30))),
                (Tone::Dim, role),
            ]);
        }
        if let Some(state) = &status.rollout {
            let spec = &self.spec;
            let way = rollout::Way {
                shadow: spec.rollout.shadow.as_ref(),
                steps: &spec.rollout.steps,
                manual: spec.experiment.as_ref().is_some_and(|experiment| experiment.promotion == Promotion::Manual),
            };
            rollout::draw(canvas, state, &way, now);
        }
        if let Some(experiment) = &status.experiment {
            rollout::experiment(canvas, experiment, now);
        }
        rollout::rejected(canvas, &status.rejected_revisions, &told, now);
    }

    fn outcome(&self) -> Outcome {
        let Some(status) = &self.status else { return Outcome::UnderWay };
        if status.observed_generation != self.metadata.generation {
            return Outcome::UnderWay;
        }
        let running = status.rollout.as_ref().is_some_and(|rollout| rollout::is_under_way(rollout.phase));
        match status.phase {
            Some(FlowPhase::Degraded | FlowPhase::Failed) => Outcome::Bad,
            Some(FlowPhase::Serving) if !running && is(&status.conditions, "Ready", "True") => Outcome::Good,
            None if is(&status.conditions, "Stalled", "True") => Outcome::Bad,
            _ => Outcome::UnderWay,
        }
    }
}

/// The table with one entry an arm: a ramp may give an arm two ranges of buckets.
fn merged(traffic: &[FlowTraffic]) -> Vec<(&FlowTraffic, i32)> {
    let mut arms: Vec<(&FlowTraffic, i32)> = Vec::new();
    for entry in traffic {
        match arms.iter_mut().find(|(arm, _)| arm.variant == entry.variant && arm.revision == entry.revision) {
            Some((_, weight)) => *weight += entry.weight,
            None => arms.push((entry, entry.weight)),
        }
    }
    arms
}
