//! Pictures of the statuses that Argo CD's health checks are tested with: one of each phase of each kind.

use std::fmt::Write;
use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::Value;

use super::canvas::{Canvas, WIDTH};
use super::{Drawn, Outcome};
use crate::api::{Evaluation, ModelDeployment, PromptFlow, RagIndex};

fn now() -> Timestamp {
    "2026-11-24T10:30:00Z".parse().unwrap()
}

fn folder(kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("manifests/argocd/llmops.dev").join(kind)
}

/// File name, object and health that Argo CD gives it, by file name.
fn cases<K: Drawn>(kind: &str) -> Vec<(String, K, String)> {
    let suite = std::fs::read_to_string(folder(kind).join("health_test.yaml")).unwrap();
    let suite: Value = serde_yaml::from_str(&suite).unwrap();
    let mut cases: Vec<_> = suite["tests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|test| {
            let path = test["inputPath"].as_str().unwrap();
            let text = std::fs::read_to_string(folder(kind).join(path)).unwrap();
            let object = serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{kind}/{path}: {error}"));
            (path.to_owned(), object, test["healthStatus"]["status"].as_str().unwrap().to_owned())
        })
        .collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    cases
}

/// All pictures of a kind in one text.
fn gallery<K: Drawn>(kind: &str) -> String {
    let mut text = String::new();
    for (path, object, _) in cases::<K>(kind) {
        let mut canvas = Canvas::new(false);
        object.draw(&mut canvas, now());
        let picture = canvas.finish();
        for line in picture.lines() {
            let is_address = line.contains("://");
            assert!(is_address || line.chars().count() <= WIDTH, "{path}: wider than {WIDTH} columns: {line}");
            assert!(line.trim_end() == line, "{path}: spaces at the end: {line:?}");
        }
        let _ = writeln!(text, "======== {path} ({:?})\n{picture}", object.outcome());
    }
    text
}

#[test]
fn flows() {
    insta::assert_snapshot!(gallery::<PromptFlow>("PromptFlow"));
}

#[test]
fn models() {
    insta::assert_snapshot!(gallery::<ModelDeployment>("ModelDeployment"));
}

#[test]
fn indexes() {
    insta::assert_snapshot!(gallery::<RagIndex>("RagIndex"));
}

#[test]
fn evaluations() {
    insta::assert_snapshot!(gallery::<Evaluation>("Evaluation"));
}

#[test]
fn colours() {
    let (_, flow, _) =
        cases::<PromptFlow>("PromptFlow").into_iter().find(|(path, ..)| path.ends_with("/rolled_back.yaml")).unwrap();
    let mut canvas = Canvas::new(true);
    flow.draw(&mut canvas, now());
    insta::assert_snapshot!(canvas.finish().replace('\x1b', "␛"));
}

/// `--watch` and Argo CD must not disagree on when a rollout is over and how it ended.
#[test]
fn outcomes_agree_with_argo_cds_health() {
    fn compare<K: Drawn>(kind: &str) {
        for (path, object, health) in cases::<K>(kind) {
            let outcome = object.outcome();
            let expected = match health.as_str() {
                "Healthy" => Outcome::Good,
                "Degraded" => Outcome::Bad,
                _ => Outcome::UnderWay,
            };
            // Differences that are meant: what is tried again by itself is not over; a verdict about the past still counts.
            let differs = ["reference_gone", "external_", "build_retried", "stale_failed"];
            if !differs.iter().any(|name| path.contains(name)) {
                assert_eq!(outcome, expected, "{kind} {path}: Argo CD says {health}");
            }
        }
    }
    compare::<PromptFlow>("PromptFlow");
    compare::<ModelDeployment>("ModelDeployment");
    compare::<RagIndex>("RagIndex");
    compare::<Evaluation>("Evaluation");
}

/// The cases are statuses that the operator could write: nothing in them is unknown to the definitions.
#[test]
fn the_cases_are_valid_objects() {
    let mut checker = crate::cli::validate::Checker::new();
    for kind in ["PromptFlow", "ModelDeployment", "RagIndex", "Evaluation"] {
        for entry in std::fs::read_dir(folder(kind).join("testdata")).unwrap() {
            let path = entry.unwrap().path();
            // Each file shows the same object in another state; a defining it twice is no problem here.
            let text = std::fs::read_to_string(&path).unwrap();
            let name = path.file_stem().unwrap().to_string_lossy().replace('_', "-");
            let own = text.replacen("  namespace: quickstart", &format!("  namespace: {name}"), 1);
            let outcome = checker.check(&path.display().to_string(), &own);
            // Two cases show how a spec that is refused looks; the refusal is in their status only.
            assert!(outcome.problems.is_empty(), "{:#?}", outcome.problems);
        }
    }
}
