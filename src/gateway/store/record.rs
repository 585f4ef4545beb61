//! What is kept of a request, of feedback and of a report.

use crate::api::revision::short;

/// What is kept of a unit of an object: a hash, for the unit itself may name a person. The object is part of it, so that units cannot be followed
/// from one object to another.
pub fn hash_of_unit(namespace: &str, name: &str, unit: &str) -> String {
    short(&format!("{namespace}/{name}\0{unit}"), 16)
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// With an answer.
    Ok,
    /// With an error.
    Error,
    /// The client left before the end.
    Cancelled,
}

impl Status {
    /// Its name in the database and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What is kept of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Interaction {
    /// Request id.
    pub request: String,
    /// When it came, in milliseconds since 1970.
    pub time_ms: i64,
    /// When it is deleted, likewise.
    pub expires_ms: i64,
    /// `flow`, `model`, `embedding`, `rerank` or `index`.
    pub kind: &'static str,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// Revision that served.
    pub revision: String,
    /// Variant that the unit is assigned to; empty for models.
    pub variant: String,
    /// Hash of the unit; the unit itself may name a person.
    pub unit: String,
    /// Who asked: name of the key or user.
    pub principal: String,
    /// How it ended.
    pub status: Status,
    /// Code of the error.
    pub error: Option<String>,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Cost.
    pub cost: Option<f64>,
    /// Currency of the cost.
    pub currency: Option<String>,
    /// Time to the end of the answer, in milliseconds.
    pub latency_ms: u64,
    /// Time to its first token.
    pub first_token_ms: Option<u64>,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// Whether exact revisions were asked for: not part of any user's experience.
    pub pinned: bool,
    /// How the unit was assigned; absent for pinned requests and for what is no flow: these are not measured.
    pub assigned: Option<Assigned>,
    /// Whether this is a shadow copy that nobody saw.
    pub shadow: bool,
    /// Calls that a fallback model answered.
    pub fallbacks: u32,
    /// Times of nodes, as JSON.
    pub nodes: String,
    /// Revisions of models and indexes, as JSON.
    pub dependencies: String,
    /// Inputs as JSON, with capture `Full`.
    pub inputs: Option<String>,
    /// The answer, with capture `Full`.
    pub answer: Option<String>,
}

/// By which routing table a unit was assigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Name of the table, see [`stratum`](crate::experiment::measurements::stratum); `shadow` for shadow copies.
    pub stratum: String,
    /// Percent of the units that the arm has in the table.
    pub weight: i32,
}

/// An answer that is given again when its question is asked again under the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenAnswer {
    /// Who asked: keys of different principals are different keys.
    pub principal: String,
    /// The key.
    pub key: String,
    /// Request id of the answer.
    pub request: String,
    /// When it is deleted, in milliseconds since 1970.
    pub expires_ms: i64,
    /// Revision that answered; empty where the answer names none.
    pub revision: String,
    /// How long the answer took, in milliseconds.
    pub took_ms: u64,
    /// The body, JSON.
    pub body: Vec<u8>,
}

/// Feedback on an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Feedback {
    /// Request id of the answer.
    pub request: String,
    /// When it came, in milliseconds since 1970.
    pub time_ms: i64,
    /// From −1 (bad) to 1 (good); thumbs are one of the ends.
    pub score: Option<f64>,
    /// Whether thumbs were up, if thumbs were given.
    pub thumbs: Option<bool>,
    /// From 0 (bad) to 1 (good), given by a judge. A judge that failed gives none.
    pub judge_score: Option<f64>,
    /// Words.
    pub comment: Option<String>,
    /// Something that happened, such as `copied`.
    pub event: Option<String>,
    /// Who gave it: name of the key or user.
    pub principal: String,
}

/// A report of an evaluation's run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Namespace of the Evaluation.
    pub namespace: String,
    /// Its name.
    pub evaluation: String,
    /// The run.
    pub run: String,
    /// Format of the body.
    pub format: ReportFormat,
    /// When it came, in milliseconds since 1970.
    pub time_ms: i64,
    /// The report.
    pub body: Vec<u8>,
}

/// Format of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ReportFormat {
    Json,
    Junit,
    Html,
}

impl ReportFormat {
    /// The format of this name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "json" => Some(Self::Json),
            "junit" => Some(Self::Junit),
            "html" => Some(Self::Html),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Junit => "junit",
            Self::Html => "html",
        }
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Junit => "application/xml",
            Self::Html => "text/html; charset=utf-8",
        }
    }
}
