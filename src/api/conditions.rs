//! Conditions as kstatus reads them: `Ready`, `Reconciling` and `Stalled`, and the domain's own.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// What a controller says of one condition, before it is merged into the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Condition type, such as `Ready`.
    pub kind: &'static str,
    /// `Some(true)` is `True`, `Some(false)` is `False`, `None` is `Unknown`.
    pub status: Option<bool>,
    /// CamelCase reason from the kind's closed list.
    pub reason: &'static str,
    /// A sentence that names the object or field and the next step.
    pub message: String,
}

impl Observation {
    /// A condition that holds.
    pub fn yes(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: Some(true), reason, message: message.into() }
    }
    /// A condition that does not hold.
    pub fn no(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: Some(false), reason, message: message.into() }
    }
    /// A condition that is not known yet.
    pub fn unknown(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: None, reason, message: message.into() }
    }
}

/// Merges observations into conditions. A transition time moves only when the status changes, so that an
/// unchanged object gives an unchanged status; conditions not observed any more are dropped.
pub fn merge(
    previous: &[Condition],
    observed: &[Observation],
    generation: i64,
    now: jiff::Timestamp,
) -> Vec<Condition> {
    observed
        .iter()
        .map(|new| {
            let status = match new.status {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            let since = previous
                .iter()
                .find(|old| old.type_ == new.kind && old.status == status)
                .map_or_else(|| Time(now), |old| old.last_transition_time.clone());
            Condition {
                type_: new.kind.to_owned(),
                status: status.to_owned(),
                reason: new.reason.to_owned(),
                message: truncate(&new.message, 32_000),
                observed_generation: Some(generation),
                last_transition_time: since,
            }
        })
        .collect()
}

/// The condition of this type, if the status has it.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether the condition of this type is `True`.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}

fn truncate(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let at = |second| jiff::Timestamp::from_second(second).unwrap();
        let first = merge(&[], &[Observation::no("Ready", "Waiting", "a")], 1, at(1));
        let same = merge(&first, &[Observation::no("Ready", "StillWaiting", "b")], 2, at(2));
        assert_eq!(same[0].last_transition_time, Time(at(1)));
        assert_eq!(same[0].reason, "StillWaiting");
        let turned = merge(&same, &[Observation::yes("Ready", "Up", "")], 2, at(3));
        assert_eq!(turned[0].last_transition_time, Time(at(3)));
    }
}
