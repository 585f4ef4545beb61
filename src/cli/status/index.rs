//! How a RagIndex stands.

use jiff::Timestamp;

use super::canvas::{Canvas, Tone, ago, bytes, fit, interval};
use super::{Drawn, Outcome, is, trouble};
use crate::api::RagIndex;
use crate::api::rag_index::{CandidatePhase, Quality};

impl Drawn for RagIndex {
    fn draw(&self, canvas: &mut Canvas, now: Timestamp) {
        let Some(status) = &self.status else { return super::unseen(canvas, self) };
        let is_building = is(&status.conditions, "Reconciling", "True");
        let (state, tone) = if self.spec.suspend {
            ("suspended", Tone::Busy)
        } else if is(&status.conditions, "Stalled", "True") {
            ("degraded", Tone::Bad)
        } else if is_building {
            ("working", Tone::Busy)
        } else if is(&status.conditions, "Ready", "True") {
            ("ready", Tone::Good)
        } else {
            ("not ready", Tone::Busy)
        };
        super::head(canvas, self, status.observed_generation, state, tone);
        let told = trouble(&status.conditions);
        canvas.prose(0, Tone::Plain, &told);

        if let Some(active) = &status.active {
            canvas.section("Active", status.url.as_deref().unwrap_or_default());
            let since = format!("  since {}", ago(now, &active.since));
            canvas.line(&[(Tone::Plain, "  "), (Tone::Strong, &active.name), (Tone::Dim, &since)]);
            let mut facts = Vec::new();
            facts.extend(status.documents.as_ref().map(|documents| format!("{} documents", documents.scanned)));
            facts.extend(status.chunks.map(|chunks| format!("{chunks} chunks")));
            facts.extend(status.bytes.map(bytes));
            facts.extend(status.embedding.as_ref().map(|embedding| embedding.model.clone()));
            canvas.prose(2, Tone::Plain, &facts.join(", "));
            if let Some(documents) = status.documents.as_ref().filter(|documents| documents.failed > 0) {
                canvas.line(&[(Tone::Bad, &format!("  {} documents could not be read", documents.failed))]);
            }
        }
        if let Some(candidate) = &status.candidate {
            let (phase, tone) = match candidate.phase {
                CandidatePhase::Failed => ("failed", Tone::Bad),
                other => (phase(other), Tone::Busy),
            };
            canvas.section("Candidate", &format!("inputs {}, attempt {}", candidate.inputs, candidate.attempt));
            let name = candidate.name.as_deref().unwrap_or("not built yet");
            canvas.line(&[(Tone::Plain, "  "), (Tone::Strong, name), (Tone::Plain, "  "), (tone, phase)]);
        }
        if !status.quality.is_empty() {
            canvas.section("Quality", "on the golden questions, of the generation judged last");
        }
        for quality in &status.quality {
            draw_quality(canvas, quality);
        }
        if !status.rejected_generations.is_empty() {
            canvas.section("Rejected", "not built again until content or spec changes");
        }
        for one in status.rejected_generations.iter().rev().take(3) {
            let name = one.name.as_deref().unwrap_or(&one.inputs);
            canvas.line(&[(Tone::Plain, "  "), (Tone::Strong, name), (Tone::Plain, "  "), (Tone::Bad, &one.reason)]);
            if !told.contains(&one.message) {
                canvas.prose(4, Tone::Plain, &one.message);
            }
        }
    }

    fn outcome(&self) -> Outcome {
        let Some(status) = &self.status else { return Outcome::UnderWay };
        if status.observed_generation != self.metadata.generation {
            return Outcome::UnderWay;
        }
        if is(&status.conditions, "Stalled", "True") {
            return Outcome::Bad;
        }
        let settled = is(&status.conditions, "Ready", "True") && !is(&status.conditions, "Reconciling", "True");
        if settled && !self.spec.suspend { Outcome::Good } else { Outcome::UnderWay }
    }
}

fn phase(phase: CandidatePhase) -> &'static str {
    match phase {
        CandidatePhase::Building => "is built and judged",
        CandidatePhase::Starting => "passed, its pods start",
        CandidatePhase::Gating => "is asked by its Evaluations",
        CandidatePhase::AwaitingApproval => "waits for approval",
        CandidatePhase::Failed => "failed",
    }
}

fn draw_quality(canvas: &mut Canvas, quality: &Quality) {
    let Some(mean) = quality.candidate.value() else { return };
    let (word, tone) = if quality.passed { ("passed", Tone::Good) } else { ("failed", Tone::Bad) };
    let active = quality.active.as_ref().and_then(|active| active.value());
    let against = active.map(|active| format!(" against {active:.3}")).unwrap_or_default();
    canvas.line(&[
        (Tone::Plain, "  "),
        (Tone::Plain, &fit(&format!("{}@{}", quality.metric, quality.k), 12)),
        (tone, &interval(0.0, mean, mean, (0.0, 1.0), 0.0, 31)),
        (Tone::Plain, &format!("  {mean:.3}{against}  ")),
        (tone, word),
        (Tone::Dim, &format!("  {} questions", quality.queries)),
    ]);
}
