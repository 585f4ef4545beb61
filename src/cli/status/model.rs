//! How a ModelDeployment stands.

use jiff::Timestamp;

use super::canvas::{Canvas, Tone, bar, bytes, fit};
use super::{Drawn, Outcome, is, rollout, trouble};
use crate::api::ModelDeployment;
use crate::api::rollout::Promotion;

impl Drawn for ModelDeployment {
    fn draw(&self, canvas: &mut Canvas, now: Timestamp) {
        let Some(status) = &self.status else { return super::unseen(canvas, self) };
        let running = status.rollout.as_ref().filter(|rollout| rollout::is_under_way(rollout.phase));
        let (state, tone) = if self.spec.suspend {
            ("suspended", Tone::Busy)
        } else if is(&status.conditions, "Stalled", "True") {
            ("degraded", Tone::Bad)
        } else if let Some(rollout) = running {
            rollout::phase(rollout.phase)
        } else if is(&status.conditions, "Ready", "True") {
            ("ready", Tone::Good)
        } else {
            ("not ready", Tone::Busy)
        };
        super::head(canvas, self, status.observed_generation, state, tone);
        let told = match running {
            Some(rollout) if tone == Tone::Busy && !rollout.message.is_empty() => rollout.message.clone(),
            _ => trouble(&status.conditions),
        };
        canvas.prose(0, Tone::Plain, &told);

        if !status.traffic.is_empty() {
            canvas.section("Traffic", status.url.as_deref().unwrap_or_default());
        }
        for arm in &status.traffic {
            let role = match (running, status.stable_revision.as_deref()) {
                (Some(_), Some(stable)) if stable == arm.revision => "stable",
                (Some(_), _) => "candidate",
                (None, _) => "",
            };
            canvas.line(&[
                (Tone::Plain, "  "),
                (Tone::Strong, &fit(&arm.revision, 12)),
                (Tone::Plain, &format!("{} {:>3}%  ", bar(f64::from(arm.weight) / 100.0, 40), arm.weight)),
                (Tone::Dim, role),
            ]);
        }
        if let Some(replicas) = &status.replicas {
            let revision = status.target_revision.as_deref().unwrap_or_default();
            canvas.section("Replicas", &format!("of revision {revision}"));
            #[allow(clippy::cast_lossless)]
            let share = f64::from(replicas.ready) / f64::from(replicas.desired.max(1));
            canvas.line(&[(
                Tone::Plain,
                &format!("  {} {} of {} ready", bar(share, 40), replicas.ready, replicas.desired),
            )]);
        }
        if let Some(download) = &status.download {
            canvas.section("Download", "");
            let line = match download.total_bytes {
                Some(total) if total > 0 => {
                    #[allow(clippy::cast_precision_loss)]
                    let share = download.bytes as f64 / total as f64;
                    format!("  {} {} of {}", bar(share, 40), bytes(download.bytes), bytes(total))
                }
                _ => format!("  {}, of unknown size", bytes(download.bytes)),
            };
            canvas.line(&[(Tone::Plain, &line)]);
        }
        if let Some(state) = &status.rollout {
            let spec = &self.spec.rollout;
            let way =
                rollout::Way { shadow: None, steps: &spec.steps, manual: spec.decision.promotion == Promotion::Manual };
            rollout::draw(canvas, state, &way, now);
        }
        rollout::rejected(canvas, &status.rejected_revisions, &told, now);
    }

    fn outcome(&self) -> Outcome {
        let Some(status) = &self.status else { return Outcome::UnderWay };
        if status.observed_generation != self.metadata.generation {
            return Outcome::UnderWay;
        }
        if is(&status.conditions, "Stalled", "True") {
            return Outcome::Bad;
        }
        let running = status.rollout.as_ref().is_some_and(|rollout| rollout::is_under_way(rollout.phase));
        // Without replicas nothing is ready, and nothing more is asked for.
        let serves = is(&status.conditions, "Ready", "True") || self.spec.replicas == 0;
        let settled = serves && !is(&status.conditions, "Reconciling", "True");
        if settled && !running && !self.spec.suspend { Outcome::Good } else { Outcome::UnderWay }
    }
}
