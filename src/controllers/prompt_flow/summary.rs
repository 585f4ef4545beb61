//! The rollout and the verdict in a few words, for `kubectl get`.

use super::rollout::Outcome;
use crate::api::PromptFlow;
use crate::api::quantity::Decimal;
use crate::api::rollout::{ComparisonStatus, GateStatus, GateVerdict, MetricKind, RolloutPhase, RolloutStatus};
use crate::rollout::{is_under_way, reason};

/// Longest reason that is shown, in characters.
const SHOWN: usize = 100;

/// One line: `step 2/3 25% · thumbs +3.1 [-0.4, +6.6] inconclusive`, `gates 1/2`, `rolled back: …`. `None` when there is
/// nothing to say besides the routing table.
pub fn line(object: &PromptFlow, outcome: &Outcome) -> Option<String> {
    let goal = outcome.experiment.as_ref().and_then(|experiment| experiment.metrics.first()).map(comparison);
    let Some(state) = &outcome.decision.state else { return goal };
    let steps = object.spec.rollout.steps.len();
    let words = match state.phase {
        RolloutPhase::Preparing => "preparing".to_owned(),
        RolloutPhase::Gating => gates(&state.gates),
        RolloutPhase::Shadowing => {
            let percent = object.spec.rollout.shadow.as_ref().map_or(0, |shadow| shadow.percent);
            format!("shadow {percent}%")
        }
        RolloutPhase::Progressing => match state.step {
            Some(step) => format!("step {}/{steps} {}%", i64::from(step) + 1, state.weight),
            None => format!("{}%", state.weight),
        },
        RolloutPhase::AwaitingApproval => format!("awaiting approval at {}%", state.weight),
        RolloutPhase::Holding => holding(state),
        RolloutPhase::RolledBack => return Some(refused(object, outcome, state)),
        RolloutPhase::Promoted => return goal.filter(|_| object.spec.experiment.is_some()),
    };
    Some(match goal.filter(|_| is_under_way(state) && state.weight > 0) {
        Some(goal) => format!("{words} · {goal}"),
        None => words,
    })
}

fn gates(gates: &[GateStatus]) -> String {
    let passed = gates.iter().filter(|gate| gate.verdict == GateVerdict::Passed).count();
    format!("gates {passed}/{}", gates.len())
}

fn holding(state: &RolloutStatus) -> String {
    let held = if state.held { "held" } else { "holding" };
    if state.weight > 0 {
        format!("{held} at {}%", state.weight)
    } else if state.held {
        held.to_owned()
    } else {
        format!("{held}: {}", short(&state.message))
    }
}

fn refused(object: &PromptFlow, outcome: &Outcome, state: &RolloutStatus) -> String {
    let by_gate = outcome.rejected.first().is_some_and(|first| first.reason == reason::EVALUATION_FAILED);
    let what = if by_gate && !object.spec.rollout.gates.is_empty() { "gate failed" } else { "rolled back" };
    format!("{what}: {}", short(&state.message))
}

fn short(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// A metric: points for shares, seconds for latency, its own unit otherwise.
fn comparison(metric: &ComparisonStatus) -> String {
    let known = MetricKind::named(&metric.name);
    let (scale, digits) = if known.is_some_and(|(kind, _)| kind.is_share()) { (100.0, 1) } else { (1.0, 3) };
    let number = |value: &Option<Decimal>| {
        let value = value.as_ref().and_then(Decimal::value).map(|value| value * scale);
        value.map_or_else(|| "?".to_owned(), |value| format!("{value:+.digits$}"))
    };
    let verdict = plain(&format!("{:?}", metric.verdict));
    let name = match known {
        Some((kind, Some(event))) => format!("{}/{event}", plain(&format!("{kind:?}"))),
        _ => plain(&metric.name),
    };
    if metric.difference.is_none() {
        return format!("{name} {verdict}");
    }
    let (difference, lower, upper) = (number(&metric.difference), number(&metric.lower), number(&metric.upper));
    format!("{name} {difference} [{lower}, {upper}] {verdict}")
}

/// `ErrorRate` as `error rate`.
fn plain(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && text.chars().last().is_some_and(char::is_alphanumeric) {
            text.push(' ');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::rollout::ExperimentVerdict;

    #[test]
    fn shares_are_points_and_everything_else_is_as_measured() {
        let decimal = |text: &str| Some(Decimal::from(text));
        let metric = |name: &str, values: [&str; 3], verdict| ComparisonStatus {
            name: name.into(),
            goal: true,
            arm: "candidate".into(),
            control: None,
            treatment: None,
            difference: decimal(values[0]),
            lower: decimal(values[1]),
            upper: decimal(values[2]),
            control_units: 1,
            treatment_units: 1,
            verdict,
            message: String::new(),
        };
        let thumbs = metric("Thumbs", ["0.031", "-0.004", "0.066"], ExperimentVerdict::Inconclusive);
        assert_eq!(comparison(&thumbs), "thumbs +3.1 [-0.4, +6.6] inconclusive");
        let errors = metric("ErrorRate", ["0.001", "-0.01", "0.02"], ExperimentVerdict::NotWorse);
        assert_eq!(comparison(&errors), "error rate +0.1 [-1.0, +2.0] not worse");
        let latency = metric("Latency", ["-0.25", "-0.5", "0.01"], ExperimentVerdict::Better);
        assert_eq!(comparison(&latency), "latency -0.250 [-0.500, +0.010] better");
        let judged = metric("JudgeScore", ["0.012", "-0.03", "0.054"], ExperimentVerdict::Inconclusive);
        assert_eq!(comparison(&judged), "judge score +0.012 [-0.030, +0.054] inconclusive");
        let named = metric("Event/CopiedCode", ["0.1", "0", "0.2"], ExperimentVerdict::Better);
        assert_eq!(comparison(&named), "event/CopiedCode +10.0 [+0.0, +20.0] better");
        let event = metric("Event/bought", ["0.1", "0", "0.2"], ExperimentVerdict::Worse);
        assert_eq!(comparison(&event), "event/bought +10.0 [+0.0, +20.0] worse");
    }
}
