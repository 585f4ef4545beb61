//! The page of an evaluation.

use jiff::Timestamp;
use serde::Serialize;

use super::measure::decimal;
use super::shared::{
    Badge, ConditionRow, FLOW, Fact, INDEX, MODEL, Moment, State, Tone, conditions, count, moment, page_path,
    report_path, span, state, tenth,
};
use crate::api::Evaluation;
use crate::api::evaluation::{EvaluationStatus, Gate, GateBound, MetricResult, MetricType, Run, RunPhase, Verdict};
use crate::gateway::store::ReportEntry;

/// Width of a metric's drawing, in its own units.
pub const METRIC_WIDTH: f64 = 160.0;

/// The page of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationPage {
    pub namespace: String,
    pub name: String,
    pub state: State,
    pub facts: Vec<Fact>,
    pub width: f64,
    /// The newest run that is over, with its metrics.
    pub latest: Option<Latest>,
    pub runs: Vec<RunRow>,
    pub conditions: Vec<ConditionRow>,
}

/// The newest run that is over.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latest {
    pub run: String,
    pub badge: Badge,
    pub stale: bool,
    pub message: String,
    pub metrics: Vec<MetricRow>,
    /// Path of the HTML report.
    pub report: Option<String>,
}

/// A metric of a variant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MetricRow {
    pub metric: String,
    pub kind: String,
    pub variant: String,
    pub value: String,
    pub interval: String,
    pub gates: Vec<String>,
    pub badge: Option<Badge>,
    pub at: Option<f64>,
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub limits: Vec<f64>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunRow {
    pub run: String,
    pub badge: Badge,
    pub stale: bool,
    pub message: String,
    pub revisions: Vec<String>,
    pub dependencies: Vec<String>,
    pub cases: String,
    pub errors: i32,
    pub cost: String,
    pub started: Option<Moment>,
    pub took: String,
    /// Format and path.
    pub reports: Vec<(&'static str, String)>,
}

/// How a run stands.
pub fn run_badge(run: &Run) -> Badge {
    match (run.phase, run.verdict) {
        (RunPhase::Running, _) => Badge::new(Tone::Busy, "Running"),
        (RunPhase::Failed, _) => Badge::new(Tone::Bad, "Could not run"),
        (RunPhase::Complete, Some(Verdict::Passed)) => Badge::new(Tone::Good, "Passed"),
        (RunPhase::Complete, Some(Verdict::Failed)) => Badge::new(Tone::Bad, "Failed"),
        (RunPhase::Complete, Some(Verdict::Inconclusive)) => Badge::new(Tone::Hold, "Inconclusive"),
        (RunPhase::Complete, None) => Badge::new(Tone::Good, "Complete"),
    }
}

/// The state of an evaluation: its conditions, else its newest run.
pub fn evaluation_state(evaluation: &Evaluation) -> State {
    let status = evaluation.status.as_ref();
    state(status.map(|status| status.conditions.as_slice()).unwrap_or_default(), evaluation.spec.suspend)
}

/// The view of an evaluation and the reports that are kept of it.
pub fn evaluation(evaluation: &Evaluation, reports: &[ReportEntry], now: Timestamp) -> EvaluationPage {
    let namespace = evaluation.metadata.namespace.clone().unwrap_or_default();
    let name = evaluation.metadata.name.clone().unwrap_or_default();
    let none = EvaluationStatus::default();
    let status = evaluation.status.as_ref().unwrap_or(&none);
    let paths = |run: &str| paths(&namespace, &name, run, reports);
    let over = status.runs.iter().find(|run| run.phase != RunPhase::Running);
    // The status has first what counts now, which may be an older run that counts again; a table goes by time.
    let mut known: Vec<&Run> = status.runs.iter().collect();
    known.sort_by_key(|run| {
        let started = run.started.as_ref().map(|time| time.0);
        (started.is_some(), std::cmp::Reverse(started))
    });
    let mut runs: Vec<RunRow> = known.into_iter().map(|run| row(run, paths(&run.name), now)).collect();
    // Reports outlive the runs that the status remembers.
    for report in reports.iter().filter(|report| !status.runs.iter().any(|run| run.name == report.run)) {
        let mut row = RunRow {
            run: report.run.clone(),
            badge: Badge::new(Tone::Off, "Past"),
            stale: true,
            message: String::new(),
            revisions: Vec::new(),
            dependencies: Vec::new(),
            cases: "–".into(),
            errors: 0,
            cost: "–".into(),
            started: None,
            took: "–".into(),
            reports: paths(&report.run),
        };
        row.started = report.time.parse().ok().map(|time| moment(time, now));
        runs.push(row);
    }
    EvaluationPage {
        state: evaluation_state(evaluation),
        facts: facts(evaluation, &namespace),
        width: METRIC_WIDTH,
        latest: over.map(|run| Latest {
            run: run.name.clone(),
            badge: run_badge(run),
            stale: run.stale,
            message: run.message.clone(),
            metrics: run.metrics.iter().map(|result| metric(result, run, evaluation)).collect(),
            report: paths(&run.name).into_iter().find(|(format, _)| *format == "HTML").map(|(_, path)| path),
        }),
        runs,
        conditions: conditions(&status.conditions, now),
        namespace,
        name,
    }
}

fn facts(evaluation: &Evaluation, namespace: &str) -> Vec<Fact> {
    let spec = &evaluation.spec;
    let target = &spec.target;
    let targets = [
        ("Flow", FLOW, &target.prompt_flow_ref),
        ("Model", MODEL, &target.model_deployment_ref),
        ("Index", INDEX, &target.rag_index_ref),
    ];
    let mut facts: Vec<Fact> = targets
        .into_iter()
        .filter_map(|(term, folder, target)| {
            let name = &target.as_ref()?.name;
            Some(Fact::link(term, name, page_path(folder, namespace, name)))
        })
        .collect();
    let cases = &spec.dataset.config_map_ref;
    facts.push(Fact::code("Dataset", format!("{}/{}", cases.name, cases.key)));
    if spec.repeats > 1 {
        facts.push(Fact::text("Each case", format!("asked {} times", spec.repeats)));
    }
    facts.extend(spec.gates.iter().map(|gate| Fact::text("Gate", format!("{} {}", gate.metric, demand(gate)))));
    facts
}

/// What a gate demands, without the metric's name.
fn demand(gate: &Gate) -> String {
    let (end, sign, limit) = match (&gate.min, &gate.max) {
        (Some(min), _) => ("lower", "≥", min),
        (None, Some(max)) => ("upper", "≤", max),
        (None, None) => return "–".into(),
    };
    match gate.bound {
        GateBound::Mean => format!("mean {sign} {limit}"),
        GateBound::LowerCI => format!("{end} end of the interval {sign} {limit}"),
    }
}

fn metric(result: &MetricResult, run: &Run, evaluation: &Evaluation) -> MetricRow {
    let spec = &evaluation.spec;
    let kind = spec.metrics.iter().find(|metric| metric.name == result.name).map(|metric| metric.r#type);
    let gates: Vec<&Gate> = spec
        .gates
        .iter()
        .filter(|gate| gate.metric == result.name)
        .filter(|gate| gate.variants.is_empty() || gate.variants.contains(&result.variant))
        .collect();
    let limits: Vec<f64> = gates.iter().filter_map(|gate| gate.min.as_ref().or(gate.max.as_ref())?.value()).collect();
    let (value, lower, upper) = ends(result);
    // Variants of a metric share a scale, so that they can be compared by eye.
    let same = run.metrics.iter().filter(|other| other.name == result.name).map(ends);
    let most = match kind {
        Some(MetricType::Latency | MetricType::Cost) | None => {
            let all = same.flat_map(|(value, _, upper)| [value, upper]).flatten().chain(limits.iter().copied());
            all.fold(f64::MIN_POSITIVE, f64::max) * 1.08
        }
        Some(_) => 1.0,
    };
    let position = |value: f64| tenth(METRIC_WIDTH * (value / most).clamp(0.0, 1.0));
    let digits = if matches!(kind, Some(MetricType::Cost)) { 5 } else { 3 };
    MetricRow {
        metric: result.name.clone(),
        kind: kind.map(|kind| format!("{kind:?}")).unwrap_or_default(),
        variant: result.variant.clone(),
        value: value.map_or_else(|| result.value.to_string(), |value| decimal(value, digits)),
        interval: lower.zip(upper).map_or_else(
            || "–".into(),
            |(lower, upper)| format!("{} to {}", decimal(lower, digits), decimal(upper, digits)),
        ),
        gates: gates.into_iter().map(demand).collect(),
        badge: result
            .passed
            .map(|passed| if passed { Badge::new(Tone::Good, "Passed") } else { Badge::new(Tone::Bad, "Failed") }),
        at: value.map(position),
        low: lower.map(position),
        high: upper.map(position),
        limits: limits.into_iter().map(position).collect(),
    }
}

/// Mean and both ends of its interval.
fn ends(result: &MetricResult) -> (Option<f64>, Option<f64>, Option<f64>) {
    let end = |end: &Option<crate::api::quantity::Decimal>| end.as_ref().and_then(|end| end.value());
    (result.value.value(), end(&result.lower), end(&result.upper))
}

fn row(run: &Run, reports: Vec<(&'static str, String)>, now: Timestamp) -> RunRow {
    let took = match (&run.started, &run.finished) {
        (Some(started), Some(finished)) => span((finished.0.as_second() - started.0.as_second()).max(0)),
        _ => "–".into(),
    };
    RunRow {
        run: run.name.clone(),
        badge: run_badge(run),
        stale: run.stale,
        message: run.message.clone(),
        revisions: run.revisions.iter().map(|asked| format!("{} {}", asked.variant, asked.revision)).collect(),
        dependencies: run.dependencies.iter().map(|on| format!("{} {}", on.name, on.revision)).collect(),
        cases: count(i64::from(run.cases)),
        errors: run.errors,
        cost: run.cost.as_ref().map_or_else(|| "–".into(), ToString::to_string),
        started: run.started.as_ref().map(|time| moment(time.0, now)),
        took,
        reports,
    }
}

fn paths(namespace: &str, evaluation: &str, run: &str, reports: &[ReportEntry]) -> Vec<(&'static str, String)> {
    let Some(entry) = reports.iter().find(|report| report.run == run) else { return Vec::new() };
    let path = report_path(namespace, evaluation, run);
    [("html", "HTML", ""), ("json", "JSON", ".json"), ("junit", "JUnit", ".xml")]
        .into_iter()
        .filter(|(format, ..)| entry.formats.iter().any(|kept| kept == format))
        .map(|(_, name, suffix)| (name, format!("{path}{suffix}")))
        .collect()
}
