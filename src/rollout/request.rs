//! What a person asks for: the annotation `llmops.dev/rollout-request: "ACTION REVISION ID"`.

use std::fmt;
use std::str::FromStr;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Serve it to everybody now; tried anew when it was rejected.
    Promote,
    /// Reject it.
    Rollback,
    /// Stay where it is.
    Hold,
    /// Go on.
    Resume,
}

impl Verb {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::Rollback => "rollback",
            Self::Hold => "hold",
            Self::Resume => "resume",
        }
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub verb: Verb,
    /// The candidate that is meant, as `status.candidateRevision` shows it.
    pub revision: String,
    /// Makes the request a new one.
    pub id: String,
}

/// Why a value is no request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no request; write `ACTION REVISION ID`, where ACTION is promote, rollback, hold or resume, REVISION is status.candidateRevision and ID is new each time"
)]
pub struct NoRequest(String);

impl FromStr for Request {
    type Err = NoRequest;

    fn from_str(text: &str) -> Result<Self, NoRequest> {
        // The value comes back in an event: bounded.
        let error = || NoRequest(text.chars().take(200).collect());
        let words: Vec<&str> = text.split_whitespace().collect();
        let [verb, revision, id] = words.as_slice() else { return Err(error()) };
        let verbs = [Verb::Promote, Verb::Rollback, Verb::Hold, Verb::Resume];
        let verb = verbs.into_iter().find(|known| known.name() == *verb).ok_or_else(error)?;
        Ok(Self { verb, revision: (*revision).to_owned(), id: (*id).to_owned() })
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.verb.name(), self.revision, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_writes() {
        let request = Request { verb: Verb::Hold, revision: "3fa9c1d2e0".into(), id: "7".into() };
        assert_eq!(request.to_string(), "hold 3fa9c1d2e0 7");
        assert_eq!(request.to_string().parse(), Ok(request));
    }

    #[test]
    fn refuses_everything_else() {
        for text in ["", "hold", "hold 3fa9", "Hold 3fa9 1", "hold 3fa9 1 2", "drop 3fa9 1"] {
            let error = text.parse::<Request>().unwrap_err().to_string();
            assert!(error.contains("write `ACTION REVISION ID`"), "{error}");
        }
    }
}
