//! Rollouts of flows through the pure stages.

use serde_json::{Value, json};

use super::tests::{at, controller, fetched, flow, reconcile, spec, verdict};
use super::*;
use crate::api::PromptFlowStatus;
use crate::api::prompt_flow::FlowPhase;
use crate::api::rollout::{ExperimentVerdict, MetricKind, RolloutPhase};
use crate::experiment::measurements::{ArmMeasurements, Measurements, MetricMeasurement, stratum};

/// A flow of one variant with this prompt, rolled out by gates and steps.
fn staged(prompt: &str) -> Value {
    let mut spec = plain(prompt);
    spec["rollout"] = json!({
        "gates": [{"evaluationRef": {"name": "quality"}}],
        "steps": [{"weight": 10, "minUnits": 100}, {"weight": 50, "minDuration": "1m"}],
    });
    spec["experiment"] = json!({"goal": {"metric": "Thumbs", "margin": "0.02"}, "minUnits": 50});
    spec
}

fn plain(prompt: &str) -> Value {
    let mut spec = spec();
    spec["variants"] = json!([]);
    spec["nodes"][1]["llm"]["messages"][1]["content"] = json!(prompt);
    spec
}

/// The story of a flow: one object through time.
struct Story {
    spec: Value,
    annotation: Option<String>,
    status: Option<PromptFlowStatus>,
    fetched: Fetched,
    second: i64,
    generation: i64,
    events: Vec<String>,
    again: Option<std::time::Duration>,
}

impl Story {
    fn new(spec: Value) -> Self {
        Self {
            spec,
            annotation: None,
            status: None,
            fetched: fetched(),
            second: 1000,
            generation: 1,
            events: Vec::new(),
            again: None,
        }
    }

    fn object(&self) -> PromptFlow {
        let mut object = flow(self.spec.clone(), self.status.as_ref());
        object.metadata.generation = Some(self.generation);
        if let Some(request) = &self.annotation {
            let annotations = object.metadata.annotations.get_or_insert_default();
            annotations.insert(crate::api::names::ANNOTATION_ROLLOUT.into(), request.clone());
        }
        object
    }

    /// Reconciles after so many seconds, twice: the second time nothing may change.
    fn after(&mut self, seconds: i64) -> &PromptFlowStatus {
        self.second += seconds;
        let first = verdict(&self.object(), &self.fetched, self.second);
        self.events = first.events.iter().map(|note| note.reason.clone()).collect();
        self.again = first.again;
        // As it comes back from the API server: whole seconds.
        let stored: PromptFlowStatus = serde_json::from_value(serde_json::to_value(&first.status).unwrap()).unwrap();
        self.status = Some(stored);
        let second = verdict(&self.object(), &self.fetched, self.second);
        assert_eq!(Some(&second.status), self.status.as_ref(), "a second look changes nothing");
        assert!(second.events.is_empty());
        self.status.as_ref().unwrap()
    }

    fn commit(&mut self, spec: Value) {
        self.spec = spec;
        self.generation += 1;
    }

    fn judge(&mut self, runs: &Value) {
        let evaluation = json!({
            "apiVersion": "llmops.dev/v1alpha1", "kind": "Evaluation",
            "metadata": {"name": "quality", "namespace": "team-a", "generation": 1},
            "spec": {
                "target": {"promptFlowRef": {"name": "faq"}},
                "dataset": {"configMapRef": {"name": "cases", "key": "cases.jsonl"}},
                "metrics": [{"name": "fact", "type": "Contains"}],
            },
            "status": {"observedGeneration": 1, "runs": runs},
        });
        self.fetched.evaluations.insert("quality".into(), serde_json::from_value(evaluation).unwrap());
    }

    /// The verdict of the gate about the release that the spec asks for.
    fn verdict(&mut self, verdict: &str) {
        let revision = self.asked();
        self.judge(&json!([run(&revision, verdict)]));
    }

    fn asked(&self) -> String {
        let compiled = build::resolve(&self.object().spec, &self.fetched).unwrap();
        compiled[0].revision.clone()
    }

    /// Thumbs of the stable and the new arm under the present table.
    fn measure(&mut self, units: u64, control: f64, treatment: f64) {
        let traffic = &self.status.as_ref().unwrap().traffic;
        let name = stratum(traffic.iter().map(|arm| (arm.variant.as_str(), arm.revision.as_str(), arm.weight)));
        let total: i32 = traffic.iter().map(|arm| arm.weight).sum();
        let arms = traffic.iter().enumerate().map(|(place, arm)| {
            let share = u64::try_from(arm.weight).unwrap() * units / u64::try_from(total).unwrap();
            let mean = if place == 0 { control } else { treatment };
            let thumbs = MetricMeasurement {
                metric: MetricKind::Thumbs,
                event: None,
                units: share,
                mean,
                m2: mean * (1.0 - mean) * f64::from(u32::try_from(share).unwrap()),
            };
            let errors =
                MetricMeasurement { metric: MetricKind::ErrorRate, event: None, units: share, mean: 0.0, m2: 0.0 };
            ArmMeasurements {
                stratum: name.clone(),
                variant: arm.variant.clone(),
                revision: arm.revision.clone(),
                weight: arm.weight,
                shadow: false,
                units: share,
                requests: share,
                metrics: vec![thumbs, errors],
            }
        });
        self.fetched.measured = Measured::Taken(Measurements { arms: arms.collect() });
    }

    fn place(&self) -> String {
        let status = self.status.as_ref().unwrap();
        let rollout = status.rollout.as_ref().unwrap();
        let step = rollout.step.map_or(String::new(), |step| format!(" step {step}"));
        format!(
            "{:?}/{:?}{step} {}",
            status.phase.unwrap(),
            rollout.phase,
            status.traffic_summary.as_deref().unwrap_or("nothing")
        )
    }

    fn ready(&self) -> (String, String) {
        let ready = conditions::find(&self.status.as_ref().unwrap().conditions, "Ready").unwrap();
        (ready.status.clone(), ready.reason.clone())
    }
}

fn run(revision: &str, verdict: &str) -> Value {
    json!({
        "name": "run1", "revisions": [{"variant": "control", "revision": revision}], "datasetDigest": "d",
        "phase": "Complete", "verdict": verdict, "message": "2 of 3 cases", "cases": 3, "errors": 0,
    })
}

/// Serves `one`; `two` is committed and has passed its gate.
fn in_ramp() -> (Story, String, String) {
    let mut story = Story::new(staged("one {{ inputs.question }} {{ nodes.search.chunks | length }}"));
    story.verdict("Passed");
    story.after(0);
    let old = story.asked();
    story.commit(staged("two {{ inputs.question }} {{ nodes.search.chunks | length }}"));
    story.after(10);
    story.verdict("Passed");
    story.after(10);
    let new = story.asked();
    (story, old, new)
}

#[test]
fn the_first_release_waits_for_its_gates_and_nothing_else() {
    let mut story = Story::new(staged("one {{ inputs.question }} {{ nodes.search.chunks | length }}"));
    story.judge(&json!([]));
    let status = story.after(0);
    assert!(status.traffic.is_empty() && status.candidate_revision.is_some());
    assert_eq!(status.summary.as_deref(), Some("gates 0/1"));
    assert_eq!(story.place(), "Progressing/Gating nothing");
    story.verdict("Passed");
    story.after(10);
    let revision = story.asked();
    assert_eq!(story.place(), format!("Serving/Promoted control 100% {revision}"));
    let status = story.status.as_ref().unwrap();
    assert_eq!((status.switch.as_ref(), status.candidate_revision.as_ref()), (None, None));
    assert!(conditions::is_true(&status.conditions, "GatesPassed"));
}

#[test]
fn gates_steps_and_promotion() {
    let (mut story, old, new) = in_ramp();
    assert_eq!(story.place(), format!("Progressing/Progressing step 0 control 90% {old} · control 10% {new}"));
    let status = story.status.as_ref().unwrap();
    let switch = status.switch.as_ref().unwrap();
    assert_eq!((switch.at.0.as_second(), switch.from.len()), (story.second + 2, 1));
    assert_eq!((status.summary.as_deref(), story.again), (Some("step 1/2 10%"), Some(rollout::POLL)));
    assert_eq!(story.ready(), ("False".into(), "RolloutInProgress".into()));
    story.measure(990, 0.7, 0.7);
    story.after(10);
    assert_eq!(story.status.as_ref().unwrap().rollout.as_ref().unwrap().step, Some(0), "99 units are too few");
    story.measure(1000, 0.7, 0.7);
    story.after(10);
    assert_eq!(story.place(), format!("Progressing/Progressing step 1 control 50% {old} · control 50% {new}"));
    story.measure(4000, 0.7, 0.85);
    story.after(59);
    assert!(story.status.as_ref().unwrap().summary.as_deref().unwrap().starts_with("step 2/2 50% · thumbs +15.0 ["));
    story.after(1);
    assert_eq!(story.place(), format!("Serving/Promoted control 100% {new}"));
    assert_eq!(story.events, ["RevisionServing"]);
    assert_eq!(story.ready(), ("True".into(), "Serving".into()));
}

#[test]
fn a_failed_gate_leaves_traffic_and_is_remembered() {
    let (mut story, old, _) = in_ramp();
    story.commit(staged("bad {{ inputs.question }} {{ nodes.search.chunks | length }}"));
    story.after(10);
    assert_eq!(story.place(), format!("Progressing/Gating control 100% {old}"));
    story.verdict("Failed");
    story.after(10);
    let bad = story.asked();
    assert_eq!(story.place(), format!("Degraded/RolledBack control 100% {old}"));
    assert_eq!(story.ready(), ("False".into(), "EvaluationFailed".into()));
    let status = story.status.as_ref().unwrap();
    assert!(conditions::is_true(&status.conditions, "Stalled"));
    assert_eq!(
        (status.rejected_revisions[0].revision.as_str(), status.rejected_revisions[0].reason.as_str()),
        (bad.as_str(), "EvaluationFailed")
    );
    assert!(
        status.summary.as_deref().unwrap().starts_with("gate failed: Evaluation `quality` did not pass: 2 of 3 cases")
    );
    // A re-sync of the same changes nothing; a revert serves at once.
    story.generation += 1;
    story.after(600);
    assert_eq!(story.place(), format!("Degraded/RolledBack control 100% {old}"));
    story.commit(staged("one {{ inputs.question }} {{ nodes.search.chunks | length }}"));
    let status = story.after(10);
    assert_eq!((status.phase, status.rollout.as_ref()), (Some(FlowPhase::Serving), None));
    assert_eq!(status.traffic[0].revision, old);
}

#[test]
fn verdicts_about_something_else_open_nothing() {
    let (mut story, ..) = in_ramp();
    story.commit(staged("three {{ inputs.question }} {{ nodes.search.chunks | length }}"));
    let new = story.asked();
    let mut stale = run(&new, "Passed");
    stale["stale"] = json!(true);
    for (runs, expected) in [
        (json!([run("0123456789", "Passed")]), RolloutPhase::Gating),
        (json!([stale]), RolloutPhase::Gating),
        (json!([run(&new, "Inconclusive")]), RolloutPhase::Holding),
    ] {
        story.judge(&runs);
        let status = story.after(10);
        assert_eq!(status.rollout.as_ref().unwrap().phase, expected, "{runs}");
        assert_eq!(status.traffic.len(), 1);
    }
    story.fetched.evaluations.get_mut("quality").unwrap().spec.target.prompt_flow_ref.as_mut().unwrap().name =
        "x".into();
    let status = story.after(10);
    assert!(status.rollout.as_ref().unwrap().message.contains("set its spec.target.promptFlowRef.name to faq"));
    story.fetched.evaluations.clear();
    let status = story.after(10);
    assert!(status.rollout.as_ref().unwrap().message.contains("there is no Evaluation `quality`"));
    assert_eq!(status.phase, Some(FlowPhase::Holding));
}

#[test]
fn worse_feedback_rolls_back_at_once() {
    let (mut story, old, new) = in_ramp();
    story.measure(4000, 0.8, 0.4);
    story.after(3);
    assert_eq!(story.place(), format!("Degraded/RolledBack control 100% {old}"));
    assert_eq!(story.ready(), ("False".into(), "RolledBack".into()));
    let status = story.status.as_ref().unwrap();
    assert_eq!(status.rejected_revisions[0].revision, new);
    assert_eq!(status.rejected_revisions[0].reason, "MetricRegression");
    assert_eq!(status.experiment.as_ref().unwrap().metrics[0].verdict, ExperimentVerdict::Worse);
    assert!(status.summary.as_deref().unwrap().starts_with("rolled back: "));
}

#[test]
fn shadow_answers_enough_copies_or_shows_harm() {
    for (failures, expected) in [(0.0, RolloutPhase::Progressing), (0.6, RolloutPhase::RolledBack)] {
        let mut spec = staged("one {{ inputs.question }} {{ nodes.search.chunks | length }}");
        spec["rollout"]["shadow"] = json!({"percent": 20, "minRequests": 50});
        let mut story = Story::new(spec.clone());
        story.verdict("Passed");
        let old = story.after(0).traffic.clone();
        spec["nodes"][1]["llm"]["messages"][1]["content"] =
            json!("two {{ inputs.question }} {{ nodes.search.chunks | length }}");
        story.commit(spec);
        story.verdict("Passed");
        story.after(10);
        assert_eq!(story.place(), format!("Progressing/Shadowing control 100% {}", old[0].revision));
        assert_eq!(story.again, Some(rollout::POLL));
        story.measure(400, 0.7, 0.7);
        let new = story.asked();
        if let Measured::Taken(measured) = &mut story.fetched.measured {
            let mut copies = measured.arms[0].clone();
            (copies.stratum, copies.revision, copies.shadow) = ("shadow".into(), new, true);
            (copies.units, copies.requests) = (60, 60);
            let m2 = failures * (1.0 - failures) * 60.0;
            copies.metrics =
                vec![MetricMeasurement { metric: MetricKind::ErrorRate, event: None, units: 60, mean: failures, m2 }];
            measured.arms.push(copies);
        }
        let status = story.after(10);
        assert_eq!(status.rollout.as_ref().unwrap().phase, expected, "{status:?}");
        assert_eq!(status.traffic[0].revision, old[0].revision);
    }
}

#[test]
fn a_gateway_that_does_not_answer_takes_no_step() {
    let (mut story, ..) = in_ramp();
    story.fetched.measured = Measured::Failed("the gateway does not answer".into());
    let status = story.after(3600);
    let rollout = status.rollout.as_ref().unwrap();
    assert_eq!((rollout.phase, rollout.step), (RolloutPhase::Progressing, Some(0)));
    assert!(rollout.message.contains("it cannot be measured: the gateway does not answer"), "{}", rollout.message);
}

#[test]
fn a_broken_split_holds() {
    let (mut story, ..) = in_ramp();
    story.measure(4000, 0.7, 0.7);
    if let Measured::Taken(measured) = &mut story.fetched.measured {
        measured.arms[1].units = 40;
    }
    let status = story.after(10);
    assert_eq!(status.phase, Some(FlowPhase::Holding));
    let ratio = conditions::find(&status.conditions, "SampleRatioOK").unwrap();
    assert_eq!((ratio.status.as_str(), ratio.reason.as_str()), ("False", "SampleRatioMismatch"));
}

#[test]
fn a_reference_that_vanishes_in_mid_rollout_holds_it() {
    let (mut story, old, new) = in_ramp();
    story.measure(1000, 0.7, 0.7);
    story.fetched.models.clear();
    let status = story.after(100);
    let rollout = status.rollout.as_ref().unwrap();
    assert!(rollout.message.contains("no ModelDeployment `smollm2`"), "{}", rollout.message);
    assert_eq!(story.place(), format!("Holding/Holding step 0 control 90% {old} · control 10% {new}"));
    assert_eq!(story.ready(), ("False".into(), "ModelNotFound".into()));
    story.fetched.config_maps.clear();
    story.after(1);
    assert_eq!(story.place(), format!("Holding/Holding step 0 control 90% {old} · control 10% {new}"));
    story.fetched = Fetched { evaluations: story.fetched.evaluations.clone(), ..fetched() };
    story.after(1);
    assert_eq!(story.status.as_ref().unwrap().phase, Some(FlowPhase::Progressing));
    // Harm is seen although the spec is broken.
    let mut broken = story.spec.clone();
    broken["output"] = json!("{{ x }}");
    story.commit(broken);
    story.measure(4000, 0.8, 0.4);
    story.after(3);
    assert_eq!(story.place(), format!("Degraded/RolledBack control 100% {old}"));
    assert_eq!(story.ready().1, "InvalidSpec");
}

#[test]
fn people_act_once() {
    let (mut story, old, new) = in_ramp();
    story.annotation = Some(format!("hold {new} 1"));
    let status = story.after(3);
    assert_eq!(status.last_handled_rollout_request.as_deref(), Some(format!("hold {new} 1").as_str()));
    assert_eq!(status.summary.as_deref(), Some("held at 10%"));
    story.annotation = Some(format!("rollback {new} 2"));
    story.after(3);
    assert_eq!(story.place(), format!("Degraded/RolledBack control 100% {old}"));
    story.annotation = Some(format!("promote {new} 3"));
    story.fetched.measured = Measured::Nothing;
    story.after(3);
    assert_eq!(story.place(), format!("Progressing/Progressing step 0 control 90% {old} · control 10% {new}"));
    assert!(story.status.as_ref().unwrap().rejected_revisions.is_empty());
    story.annotation = Some(format!("promote {new} 4"));
    story.after(3);
    assert_eq!(story.place(), format!("Serving/Promoted control 100% {new}"));
}

#[test]
fn no_second_change_before_the_gateways_made_the_first() {
    let (mut story, ..) = in_ramp();
    let before = story.status.clone();
    story.measure(4000, 0.8, 0.4);
    let early = story.after(1).clone();
    assert_eq!(Some(early), before);
    assert_eq!(story.again, Some(std::time::Duration::from_secs(1)));
    assert_eq!(story.after(1).rollout.as_ref().unwrap().phase, RolloutPhase::RolledBack);
}

#[test]
fn without_a_rollout_a_new_prompt_serves_in_one_status() {
    let mut story = Story::new(plain("one {{ inputs.question }} {{ nodes.search.chunks | length }}"));
    story.after(0);
    assert_eq!((story.again, story.events.len()), (None, 0));
    story.commit(plain("two {{ inputs.question }} {{ nodes.search.chunks | length }}"));
    story.after(10);
    assert_eq!(story.place(), format!("Serving/Promoted control 100% {}", story.asked()));
    assert_eq!((story.again, story.events.as_slice()), (None, &["RevisionServing".to_owned()][..]));
}

#[test]
fn what_does_not_affect_behaviour_makes_no_candidate() {
    let (mut story, ..) = in_ramp();
    story.annotation = None;
    let revision = story.asked();
    let mut changed = story.spec.clone();
    changed["rollout"]["historyLimit"] = json!(3);
    changed["telemetry"] = json!({"capture": "Full"});
    changed["experiment"]["alpha"] = json!("0.01");
    changed["limits"] = json!({});
    story.commit(changed);
    assert_eq!(story.asked(), revision);
    story.after(10);
    assert_eq!(story.status.as_ref().unwrap().rollout.as_ref().unwrap().phase, RolloutPhase::Progressing);
}

#[test]
fn a_status_of_an_operator_without_rollouts_is_taken_over() {
    let mut story = Story::new(spec());
    let mut status = reconcile(&story.object(), &story.fetched, 100);
    (status.stable, status.rollout) = (Vec::new(), None);
    story.status = Some(status);
    let status = story.after(10);
    assert_eq!((status.rollout.as_ref(), status.stable.len(), status.switch.as_ref()), (None, 2, None));
}

#[test]
fn variants_are_compared_and_the_worse_one_gets_nothing() {
    for (first, second, expected, reason) in
        [(0.8, 0.4, [100, 0], split::VARIANT_WORSE), (0.4, 0.8, [0, 100], split::VARIANT_OUTPERFORMED)]
    {
        let mut spec = spec();
        spec["experiment"] = json!({"goal": {"metric": "Thumbs"}});
        let mut story = Story::new(spec);
        story.after(0);
        assert_eq!(story.again, Some(rollout::POLL));
        story.measure(4000, first, second);
        story.after(10);
        let status = story.status.clone().unwrap();
        assert_eq!(status.traffic.iter().map(|arm| arm.weight).collect::<Vec<_>>(), expected);
        assert_eq!((status.rejected_revisions[0].reason.as_str(), status.phase), (reason, Some(FlowPhase::Serving)));
        // Nothing to compare any more; new weights of the spec do not bring it back, a person does.
        assert_eq!(story.again, None);
        story.fetched.measured = Measured::Nothing;
        let loser = status.rejected_revisions[0].revision.clone();
        let mut changed = story.spec.clone();
        (changed["variants"][0]["weight"], changed["variants"][1]["weight"]) = (json!(50), json!(50));
        story.commit(changed);
        assert_eq!(story.after(10).traffic, status.traffic);
        story.annotation = Some(format!("promote {loser} 1"));
        let status = story.after(10);
        assert_eq!(status.traffic.iter().map(|arm| arm.weight).collect::<Vec<_>>(), [50, 50]);
        assert_eq!(story.events, ["VariantRestored"]);
    }
}

#[test]
fn suspend_freezes_a_rollout() {
    let (mut story, ..) = in_ramp();
    let before = story.status.clone().unwrap();
    let mut suspended = story.spec.clone();
    suspended["suspend"] = json!(true);
    story.commit(suspended);
    let status = story.after(1000);
    assert_eq!((&status.traffic, &status.rollout), (&before.traffic, &before.rollout));
    assert_eq!(status.phase, Some(FlowPhase::Suspended));
}

#[test]
fn both_revisions_stay_while_a_rollout_is_under_way() {
    let (mut story, ..) = in_ramp();
    let mut changed = story.spec.clone();
    changed["rollout"]["historyLimit"] = json!(1);
    story.commit(changed);
    let object = story.object();
    for arm in &story.status.as_ref().unwrap().traffic {
        let mut revision = ControllerRevision::default();
        revision.metadata.name = Some(crate::api::names::flow_revision("faq", &arm.revision));
        story.fetched.revisions.push(revision);
    }
    let validated = controller().validate(&object, &story.fetched).unwrap();
    let plan = controller().build(&object, &story.fetched, &validated, at(story.second)).unwrap();
    assert!(plan.removals.is_empty(), "{:?}", plan.removals);
}
