//! Parts that several pages have: states, moments, bars, conditions, links.

use std::collections::BTreeSet;
use std::fmt::Write;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;

use crate::api::conditions::{find, is_true};
use crate::api::rollout::RejectedRevision;

/// Folder of the flows' pages.
pub const FLOW: &str = "flows";
/// Folder of the models' pages.
pub const MODEL: &str = "models";
/// Folder of the indexes' pages.
pub const INDEX: &str = "indexes";
/// Folder of the evaluations' pages.
pub const EVALUATION: &str = "evaluations";

/// Evaluation and run of the HTML reports that whoever asks may read.
pub type Reports = BTreeSet<(String, String)>;

/// How something stands. Pages show a mark of its own shape and a word with it, so the colour is never all that tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tone {
    Bad,
    Hold,
    Busy,
    Good,
    Off,
}

/// A state in a word or two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Badge {
    pub tone: Tone,
    pub label: String,
}

impl Badge {
    pub fn new(tone: Tone, label: impl Into<String>) -> Self {
        Self { tone, label: label.into() }
    }
}

/// A moment, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moment {
    pub rfc3339: String,
    pub shown: String,
    pub ago: String,
}

/// A moment as seen from `now`.
pub fn moment(at: Timestamp, now: Timestamp) -> Moment {
    Moment {
        rfc3339: at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        shown: at.strftime("%-d %b %Y, %H:%M:%S UTC").to_string(),
        ago: match now.as_second() - at.as_second() {
            ..=0 => "now".into(),
            seconds => format!("{} ago", span(seconds)),
        },
    }
}

/// Seconds in the largest unit that fits, rounded down.
pub fn span(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Age of an object.
pub fn age(meta: &kube::core::ObjectMeta, now: Timestamp) -> Option<String> {
    let created = meta.creation_timestamp.as_ref()?.0;
    Some(span((now.as_second() - created.as_second()).max(0)))
}

/// Something worth knowing in a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    pub term: &'static str,
    pub text: String,
    pub path: Option<String>,
    /// Whether the text is a name or number that people copy.
    pub code: bool,
}

impl Fact {
    pub fn text(term: &'static str, text: impl Into<String>) -> Self {
        Self { term, text: text.into(), path: None, code: false }
    }
    pub fn code(term: &'static str, text: impl Into<String>) -> Self {
        Self { code: true, ..Self::text(term, text) }
    }
    pub fn link(term: &'static str, text: impl Into<String>, path: String) -> Self {
        Self { path: Some(path), ..Self::text(term, text) }
    }
}

/// A condition of the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConditionRow {
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    pub since: Moment,
}

pub fn conditions(conditions: &[Condition], now: Timestamp) -> Vec<ConditionRow> {
    let row = |condition: &Condition| ConditionRow {
        kind: condition.type_.clone(),
        status: condition.status.clone(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        since: moment(condition.last_transition_time.0, now),
    };
    conditions.iter().map(row).collect()
}

/// How an object stands, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct State {
    pub badge: Badge,
    pub reason: String,
    pub message: String,
}

/// The state that the conditions of any kind tell.
pub fn state(conditions: &[Condition], suspended: bool) -> State {
    let ready = find(conditions, "Ready");
    let stalled = find(conditions, "Stalled").filter(|stalled| stalled.status == "True");
    let told = stalled.or(ready);
    let badge = match (suspended, ready.map(|ready| ready.status.as_str()), stalled) {
        (true, ..) => Badge::new(Tone::Off, "Suspended"),
        (_, Some("True"), None) => Badge::new(Tone::Good, "Ready"),
        (_, Some("True"), Some(_)) => Badge::new(Tone::Bad, "Degraded"),
        (_, _, Some(_)) => Badge::new(Tone::Bad, "Stalled"),
        (_, Some(_), None) => Badge::new(Tone::Busy, "Not ready"),
        (_, None, None) => Badge::new(Tone::Busy, "New"),
    };
    State {
        badge,
        reason: told.map(|told| told.reason.clone()).unwrap_or_default(),
        message: told.map(|told| told.message.clone()).unwrap_or_default(),
    }
}

/// Whether a condition is there and says no.
pub fn says_no(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some() && !is_true(conditions, kind)
}

/// Shares of a whole, drawn as a bar and told in words.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Bar {
    pub parts: Vec<Part>,
    pub label: String,
}

/// A share.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// Percent from the left.
    pub at: i32,
    /// Percent.
    pub width: i32,
    /// Number of the colour, from 0; 9 is that of a candidate.
    pub colour: usize,
    pub name: String,
    pub label: String,
}

/// The colour of what is on its way.
pub const CANDIDATE_COLOUR: usize = 9;
/// Colours of what serves.
const COLOURS: usize = 8;

/// A bar of shares: words, percent, and whether it is the candidate. Entries with the same words are one.
pub fn bar(shares: impl IntoIterator<Item = (String, i32, bool)>) -> Bar {
    let mut merged: Vec<(String, i32, bool)> = Vec::new();
    for (label, weight, candidate) in shares {
        match merged.iter_mut().find(|(known, ..)| *known == label) {
            Some((_, sum, _)) => *sum = sum.saturating_add(weight),
            None => merged.push((label, weight, candidate)),
        }
    }
    let mut bar = Bar::default();
    let mut at = 0;
    let mut stable = 0;
    for (label, weight, candidate) in merged {
        let colour = if candidate { CANDIDATE_COLOUR } else { stable % COLOURS };
        stable += usize::from(!candidate);
        let width = weight.clamp(0, 100 - at);
        bar.parts.push(Part { at, width, colour, label: format!("{label} {weight} %"), name: label });
        at += width;
    }
    bar.label = bar.parts.iter().map(|part| part.label.as_str()).collect::<Vec<_>>().join(", ");
    bar
}

/// A revision that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    pub revision: String,
    pub reason: String,
    pub message: String,
    pub time: Option<Moment>,
}

/// The newest first.
pub fn rejected(revisions: &[RejectedRevision], now: Timestamp) -> Vec<Rejected> {
    let mut newest: Vec<&RejectedRevision> = revisions.iter().collect();
    newest.sort_by_key(|rejected| std::cmp::Reverse(rejected.time.0));
    let row = |rejected: &RejectedRevision| Rejected {
        revision: rejected.revision.clone(),
        reason: rejected.reason.clone(),
        message: rejected.message.clone(),
        time: Some(moment(rejected.time.0, now)),
    };
    newest.into_iter().map(row).collect()
}

/// Bytes in the largest binary unit that fits.
pub fn bytes(count: i64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[allow(clippy::cast_precision_loss)]
    let mut value = count as f64;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == UNITS[0] { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

/// A count with its thousands apart.
pub fn count(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if number < 0 { format!("−{grouped}") } else { grouped }
}

/// A path; what is not unreserved in a URL is percent-encoded.
fn path(root: &str, parts: &[&str]) -> String {
    let mut path = String::from(root);
    for part in parts {
        path.push('/');
        for byte in part.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                path.push(char::from(byte));
            } else {
                // Writing to a string does not fail.
                let _ = write!(path, "%{byte:02X}");
            }
        }
    }
    path
}

/// Path of the first page with only this namespace.
pub fn namespace_path(namespace: &str) -> String {
    format!("/?namespace={}", path("", &[namespace]).trim_start_matches('/'))
}

/// Path of an object's page.
pub fn page_path(kind: &str, namespace: &str, name: &str) -> String {
    path("/dashboard", &[kind, namespace, name])
}

/// Path of a run's report.
pub fn report_path(namespace: &str, evaluation: &str, run: &str) -> String {
    path("/v1/reports", &[namespace, evaluation, run])
}

/// Rounds a coordinate: no drawing needs more than a tenth.
pub fn tenth(value: f64) -> f64 {
    let rounded = (value * 10.0).round() / 10.0;
    // No negative zero in the page.
    rounded + 0.0
}
