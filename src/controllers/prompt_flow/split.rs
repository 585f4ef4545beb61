//! The experiment between a flow's variants while no rollout is under way, pure.
//!
//! A variant that is worse, or that another one outperformed, is remembered in `rejectedRevisions` with a reason of its
//! own; as long as it serves with that revision its share goes to the others, whatever weight the spec gives it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::PromptFlowStatus;
use crate::api::prompt_flow::PromptFlowSpec;
use crate::api::rollout::{ArmRevision, ExperimentStatus, ExperimentVerdict, Promotion, RejectedRevision};
use crate::experiment::measurements::Measurements;
use crate::experiment::{self, SampleRatio};
use crate::rollout::Rejection;
use crate::rollout::request::{Request, Verb};

/// Reason of a variant whose goal or guardrail is worse than the first one's.
pub const VARIANT_WORSE: &str = "VariantWorse";
/// Reason of the variants that another one is better than.
pub const VARIANT_OUTPERFORMED: &str = "VariantOutperformed";

/// What a look at the split showed.
#[derive(Debug, Default)]
pub struct Look {
    /// Variants that get nothing from now on.
    pub rejected: Vec<Rejection>,
    /// What to tell of it.
    pub shown: Option<(ExperimentStatus, SampleRatio)>,
}

/// Whether variants are compared: there is an experiment, and more than one of them has a share.
pub fn is_split(spec: &PromptFlowSpec, status: &PromptFlowStatus) -> bool {
    spec.experiment.is_some() && status.traffic.iter().filter(|arm| arm.weight > 0).count() > 1
}

/// Compares the other variants with the first one that has a share.
pub fn read(
    spec: &PromptFlowSpec,
    status: &PromptFlowStatus,
    stable: &[ArmRevision],
    measured: &Measurements,
    now: jiff::Timestamp,
) -> Look {
    let Some(asked) = spec.experiment.as_ref().filter(|_| is_split(spec, status)) else { return Look::default() };
    let live: Vec<&ArmRevision> = stable.iter().filter(|arm| arm.weight > 0).collect();
    let Some((control, others)) = live.split_first() else { return Look::default() };
    // The spec's faults were found by `validate`.
    let Ok(plan) = experiment::Plan::new(Some(asked), false, others.len()) else { return Look::default() };
    let control = std::slice::from_ref(*control);
    let readings: Vec<(&ArmRevision, experiment::Reading)> = others
        .iter()
        .map(|arm| (*arm, experiment::read(&plan, measured, &arm.variant, control, std::slice::from_ref(*arm))))
        .collect();
    let mut look = Look::default();
    for (arm, reading) in &readings {
        if let Some(harm) = &reading.harm {
            let message = format!("variant {} gets no traffic any more: {}", arm.variant, harm.message);
            look.rejected.push(rejection(VARIANT_WORSE, arm, message));
        }
    }
    let gain = |reading: &experiment::Reading| {
        let goal = reading.comparisons.first().and_then(|goal| goal.difference.as_ref()?.value());
        goal.map_or(0.0, f64::abs)
    };
    let better = readings
        .iter()
        .filter(|(_, reading)| reading.goal == Some(ExperimentVerdict::Better) && reading.harm.is_none())
        .max_by(|(_, a), (_, b)| gain(a).total_cmp(&gain(b)));
    if let Some((winner, reading)) = better.filter(|_| asked.promotion == Promotion::Auto) {
        let why = reading.comparisons.first().map(|goal| goal.message.as_str()).unwrap_or_default();
        for arm in live.iter().filter(|arm| arm.variant != winner.variant) {
            if !look.rejected.iter().any(|old| old.revisions.contains(&arm.revision)) {
                let message = format!("variant {} gets all traffic instead of {}: {why}", winner.variant, arm.variant);
                look.rejected.push(rejection(VARIANT_OUTPERFORMED, arm, message));
            }
        }
    }
    let readings: Vec<experiment::Reading> = readings.into_iter().map(|(_, reading)| reading).collect();
    // The worst of them: one broken split makes the whole table doubtful.
    let ratio = readings.iter().map(|reading| &reading.ratio).max_by_key(|ratio| ratio.broken).cloned();
    look.shown = ratio.map(|ratio| (experiment::status(&readings, None, Some(Time(now))), ratio));
    look
}

fn rejection(reason: &str, arm: &ArmRevision, message: String) -> Rejection {
    Rejection { revisions: vec![arm.revision.clone()], reason: reason.to_owned(), message }
}

/// Reason of the event about a rejection.
pub fn event(rejection: &Rejection) -> &'static str {
    if rejection.reason == VARIANT_WORSE { VARIANT_WORSE } else { VARIANT_OUTPERFORMED }
}

fn is_out(arm: &ArmRevision, serving: &[ArmRevision], rejected: &[RejectedRevision]) -> bool {
    let serves = serving.iter().any(|old| old.variant == arm.variant && old.revision == arm.revision);
    let refused = |old: &RejectedRevision| {
        old.revision == arm.revision && (old.reason == VARIANT_WORSE || old.reason == VARIANT_OUTPERFORMED)
    };
    serves && rejected.iter().any(refused)
}

/// A release with the shares of variants that are out given to the first one that is not.
pub fn without(release: &[ArmRevision], serving: &[ArmRevision], rejected: &[RejectedRevision]) -> Vec<ArmRevision> {
    let mut release = release.to_vec();
    let out: Vec<bool> = release.iter().map(|arm| is_out(arm, serving, rejected)).collect();
    let Some(heir) = out.iter().position(|out| !out) else { return release };
    let mut freed = 0;
    for (arm, _) in release.iter_mut().zip(&out).filter(|(_, out)| **out) {
        freed += std::mem::take(&mut arm.weight);
    }
    if let Some(heir) = release.get_mut(heir) {
        heir.weight += freed;
    }
    release
}

/// Lets a variant take part again that a person asks to promote, and names it.
pub fn restore(text: &str, serving: &[ArmRevision], rejected: &mut Vec<RejectedRevision>) -> Option<String> {
    let request: Request = text.parse().ok().filter(|request: &Request| request.verb == Verb::Promote)?;
    let arm = serving.iter().find(|arm| arm.revision == request.revision && is_out(arm, serving, rejected))?;
    rejected.retain(|old| old.revision != request.revision);
    Some(arm.variant.clone())
}
