//! Events: what people see in `kubectl describe`. Only transitions make one, and the ordinary way from created to
//! ready makes none, because the conditions tell it already.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, ObjectMeta};

use super::apply::Parent;
use crate::api::conditions::find;
use crate::api::revision::short;

/// Reason of `Ready` while a rollout is under way. What serves goes on serving, and the rollout tells its own events.
pub const REASON_ROLLOUT: &str = "RolloutInProgress";

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether it is bad news.
    pub warning: bool,
    /// CamelCase reason.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

impl Note {
    /// Good or neutral news.
    pub fn normal(reason: &str, message: impl Into<String>) -> Self {
        Self { warning: false, reason: reason.to_owned(), message: message.into() }
    }

    /// Bad news.
    pub fn warning(reason: &str, message: impl Into<String>) -> Self {
        Self { warning: true, reason: reason.to_owned(), message: message.into() }
    }

    pub(crate) fn event(&self, parent: &Parent, now: jiff::Timestamp, instance: &str) -> Event {
        let resource = parent.kind.resource();
        Event {
            metadata: ObjectMeta {
                namespace: Some(parent.key.namespace.clone()),
                // Notes of one reconcile share their moment; what they say sets them apart.
                name: Some(format!(
                    "{}.{:x}.{}",
                    parent.key.name,
                    now.as_nanosecond(),
                    short(&format!("{}\0{}", self.reason, self.message), 6)
                )),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            action: Some("Reconcile".to_owned()),
            reason: Some(self.reason.clone()),
            note: Some(self.message.chars().take(1000).collect()),
            type_: Some(if self.warning { "Warning" } else { "Normal" }.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(resource.api_version),
                kind: Some(resource.kind),
                namespace: Some(parent.key.namespace.clone()),
                name: Some(parent.key.name.clone()),
                uid: Some(parent.uid.clone()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(parent.manager.to_owned()),
            reporting_instance: Some(instance.to_owned()),
            ..Event::default()
        }
    }
}

/// The events of a change of conditions: becoming stalled, losing readiness, and recovering from either. Readiness lost with one of the
/// `ordinary` reasons is no bad news.
pub fn transitions(old: &[Condition], new: &[Condition], ordinary: &[&str]) -> Vec<Note> {
    let mut notes = Vec::new();
    let is =
        |conditions: &[Condition], kind: &str, status: &str| find(conditions, kind).is_some_and(|c| c.status == status);
    if let Some(stalled) = find(new, "Stalled").filter(|condition| condition.status == "True") {
        let same = find(old, "Stalled").is_some_and(|old| old.status == "True" && old.reason == stalled.reason);
        if !same {
            notes.push(Note::warning(&stalled.reason, stalled.message.clone()));
        }
    }
    let Some(ready) = find(new, "Ready") else { return notes };
    // A new revision on its way makes an object less than ready; while the old one serves that is no bad news.
    let serves = is(new, "Available", "True") || ready.reason == REASON_ROLLOUT;
    if ready.status != "True" && is(old, "Ready", "True") && notes.is_empty() && !serves {
        let warning = !ordinary.contains(&ready.reason.as_str());
        notes.push(Note { warning, ..Note::normal(&ready.reason, ready.message.clone()) });
    }
    if ready.status == "True" && !is(new, "Stalled", "True") && is(old, "Stalled", "True") {
        notes.push(Note::normal(&ready.reason, ready.message.clone()));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::conditions::{Observation, merge};

    #[test]
    fn notes_of_one_moment_have_names_of_their_own() {
        use crate::controllers::kinds::{Key, Kind};
        let parent = Parent {
            kind: Kind::PromptFlow,
            key: Key::new("n", "ask"),
            uid: "u".into(),
            manager: "llmops-promptflow",
            is_known: false,
        };
        let at = jiff::Timestamp::UNIX_EPOCH;
        let name = |note: Note| note.event(&parent, at, "i").metadata.name.unwrap();
        let one = name(Note::normal("RolledBack", "x"));
        assert!(one.starts_with("ask."), "{one}");
        assert_ne!(one, name(Note::normal("RolloutStarted", "x")));
        assert_ne!(one, name(Note::normal("RolledBack", "y")));
        assert_eq!(one, name(Note::normal("RolledBack", "x")));
    }

    #[test]
    fn only_bad_news_and_recoveries_make_events() {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let of = |observed: &[Observation]| merge(&[], observed, 1, at);
        let starting = of(&[Observation::no("Ready", "Progressing", "")]);
        let ready = of(&[Observation::yes("Ready", "Serving", ""), Observation::no("Stalled", "Fine", "")]);
        let stalled =
            of(&[Observation::yes("Ready", "Serving", ""), Observation::yes("Stalled", "DigestMismatch", "x")]);
        assert!(transitions(&[], &starting, &[]).is_empty());
        assert!(transitions(&starting, &ready, &[]).is_empty());
        assert_eq!(transitions(&ready, &stalled, &[]), [Note::warning("DigestMismatch", "x")]);
        assert!(transitions(&stalled, &stalled, &[]).is_empty());
        assert_eq!(transitions(&stalled, &ready, &[]), [Note::normal("Serving", "")]);
        assert_eq!(transitions(&ready, &starting, &[]), [Note::warning("Progressing", "")]);
        assert_eq!(transitions(&ready, &starting, &["Progressing"]), [Note::normal("Progressing", "")]);
        let rolling = of(&[Observation::no("Ready", "Progressing", ""), Observation::yes("Available", "Serving", "")]);
        assert!(transitions(&ready, &rolling, &[]).is_empty());
    }
}
