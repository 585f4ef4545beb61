//! Jobs: pods one after the other until one succeeds, too many failed, or time is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{condition, controlled, holds, is_going, number, pod_of, suffix, text};
use crate::apiserver::ApiServer;

const ACTOR: &str = "job-controller";

/// When Jobs started and may try again, by uid.
#[derive(Default)]
pub struct Memory {
    started: HashMap<String, Instant>,
    retry: HashMap<(String, usize), Instant>,
}

/// Moves all Jobs forward. Gives the time at which one moves by itself.
pub fn step(server: &ApiServer, memory: &mut Memory) -> Option<Instant> {
    let jobs = server.list("Job");
    let open = jobs.iter().filter(|job| !is_going(job) && !holds(job, "Complete") && !holds(job, "Failed"));
    open.filter_map(|job| advance(server, job, memory)).min()
}

enum Outcome {
    Complete,
    Failed(&'static str, String),
}

fn advance(server: &ApiServer, job: &Value, memory: &mut Memory) -> Option<Instant> {
    let now = Instant::now();
    let uid = text(job, "/metadata/uid").to_owned();
    if job["spec"]["suspend"] == true {
        return None;
    }
    let started = *memory.started.entry(uid.clone()).or_insert(now);
    let pods = controlled(server, "Pod", job);
    let in_phase = |phase: &str| pods.iter().filter(|pod| text(pod, "/status/phase") == phase).count();
    let (succeeded, failed) = (in_phase("Succeeded"), in_phase("Failed"));
    let active = pods.iter().filter(|pod| !is_going(pod)).count().saturating_sub(succeeded + failed);
    let deadline = job["spec"]["activeDeadlineSeconds"].as_u64().map(|seconds| started + Duration::from_secs(seconds));
    let outcome = if succeeded > 0 {
        Some(Outcome::Complete)
    } else if deadline.is_some_and(|deadline| now >= deadline) {
        Some(Outcome::Failed("DeadlineExceeded", "Job was active longer than specified deadline".into()))
    } else if let Some(message) = pods.iter().find_map(|pod| refused(job, pod)) {
        Some(Outcome::Failed("PodFailurePolicy", message))
    } else if failed as i64 > number(job, "/spec/backoffLimit") {
        Some(Outcome::Failed("BackoffLimitExceeded", "Job has reached the specified backoff limit".into()))
    } else {
        None
    };
    let mut next = deadline;
    if outcome.is_none() && active == 0 && pods.iter().all(|pod| !is_going(pod)) {
        // The first retry after 10 s, then twice as long each time.
        let wait = if failed == 0 { 0 } else { 10u64 << (failed - 1).min(6) };
        let at = *memory.retry.entry((uid, failed)).or_insert(now + Duration::from_secs(wait));
        if now >= at {
            let pod =
                pod_of(job, &format!("{}-{}", text(job, "/metadata/name"), suffix(server)), &job["spec"]["template"]);
            server.create(ACTOR, &pod).unwrap_or_else(|error| panic!("a pod: {}", error.message));
        } else {
            next = Some(next.map_or(at, |next| next.min(at)));
        }
    }
    if let Some(Outcome::Failed(..)) = &outcome {
        for pod in
            pods.iter().filter(|pod| !is_going(pod) && !matches!(text(pod, "/status/phase"), "Failed" | "Succeeded"))
        {
            server.delete(ACTOR, pod, &json!({}));
        }
    }
    record(server, job, &pods, outcome, (succeeded, failed));
    next
}

fn record(server: &ApiServer, job: &Value, pods: &[Arc<Value>], outcome: Option<Outcome>, counts: (usize, usize)) {
    let clock = server.lock().clock.now();
    let running = pods.iter().filter(|pod| !is_going(pod)).count().saturating_sub(counts.0 + counts.1);
    let ready = pods.iter().filter(|pod| holds(pod, "Ready")).count();
    server.change(ACTOR, job, Some("status"), |job| {
        let status = &mut job["status"];
        if status.get("startTime").is_none() {
            status["startTime"] = json!(clock);
        }
        for (field, value) in [("active", running), ("succeeded", counts.0), ("failed", counts.1)] {
            set(status, field, value);
        }
        status["ready"] = json!(ready);
        match outcome {
            Some(Outcome::Complete) => {
                condition(
                    status,
                    "SuccessCriteriaMet",
                    true,
                    "CompletionsReached",
                    "Reached expected number of succeeded pods",
                    &clock,
                );
                condition(
                    status,
                    "Complete",
                    true,
                    "CompletionsReached",
                    "Reached expected number of succeeded pods",
                    &clock,
                );
                status["completionTime"] = json!(clock);
                set(status, "active", 0);
            }
            Some(Outcome::Failed(reason, message)) => {
                condition(status, "FailureTarget", true, reason, &message, &clock);
                condition(status, "Failed", true, reason, &message, &clock);
                set(status, "active", 0);
            }
            None => {}
        }
    });
}

/// Sets a count; none is not written.
fn set(status: &mut Value, field: &str, count: usize) {
    if count > 0 {
        status[field] = json!(count);
    } else if let Some(map) = status.as_object_mut() {
        map.shift_remove(field);
    }
}

/// Whether the failure policy ends the Job because of this pod.
fn refused(job: &Value, pod: &Value) -> Option<String> {
    if text(pod, "/status/phase") != "Failed" {
        return None;
    }
    let statuses = ["initContainerStatuses", "containerStatuses"];
    let codes: Vec<(&str, i64)> = statuses
        .iter()
        .flat_map(|list| pod["status"][list].as_array().into_iter().flatten())
        .map(|one| (text(one, "/name"), number(one, "/state/terminated/exitCode")))
        .filter(|(_, code)| *code != 0)
        .collect();
    for rule in job["spec"]["podFailurePolicy"]["rules"].as_array()? {
        let on = &rule["onExitCodes"];
        let values: Vec<i64> = on["values"].as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
        let inside = on["operator"] == "In";
        let matched = codes.iter().find(|(name, code)| {
            let container = on.get("containerName").is_none_or(|wanted| wanted == name);
            container && values.contains(code) == inside
        });
        if let Some((name, code)) = matched {
            let message =
                format!("Container {name} for pod {} failed with exit code {code}", text(pod, "/metadata/name"));
            return (rule["action"] == "FailJob").then_some(message);
        }
    }
    None
}
