//! Metrics: a number for an answer.

pub mod rouge;

use regex::{Regex, RegexBuilder};
use serde::de::IgnoredAny;

use super::stats::Method;
use crate::api::evaluation::{Metric, MetricType};
use crate::indexer::embed::cosine;

/// What a metric sees of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// The answer.
    pub text: &'a str,
    /// Time of the request that was answered, in seconds; attempts before it do not count.
    pub seconds: f64,
    /// Its cost, where the models have one.
    pub cost: Option<f64>,
}

/// Turns texts into vectors of one length.
pub trait Embed {
    /// A vector for each text, in order.
    ///
    /// # Errors
    /// A sentence that says why not.
    fn vectors(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String>;
}

/// A metric's parameters are wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metric {name:?}: pattern is no regular expression: {problem}")]
pub struct PatternError {
    /// Name of the metric.
    pub name: String,
    /// What the parser says.
    pub problem: String,
}

/// A metric that is ready to score.
#[derive(Clone, Debug)]
pub struct Scorer {
    kind: MetricType,
    ignore_case: bool,
    pattern: Option<Regex>,
}

impl Scorer {
    /// Prepares a metric.
    ///
    /// # Errors
    /// When its pattern is missing or no regular expression.
    pub fn new(metric: &Metric) -> Result<Self, PatternError> {
        let wrong = |problem: String| PatternError { name: metric.name.clone(), problem };
        let pattern = match metric.r#type {
            MetricType::Regex => {
                let pattern = metric.pattern.as_ref().ok_or_else(|| wrong("it is missing".into()))?;
                let built = RegexBuilder::new(pattern).case_insensitive(metric.ignore_case).build();
                // The parser draws the place over several lines; conditions and logs have one.
                let one_line = |error: regex::Error| error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
                Some(built.map_err(|error| wrong(one_line(error)))?)
            }
            _ => None,
        };
        Ok(Self { kind: metric.r#type, ignore_case: metric.ignore_case, pattern })
    }

    /// The score, or `None` where the answer has nothing to score (no cost known, or a metric that [`similarity`] scores).
    pub fn score(&self, answer: Answered<'_>, expected: &[&str]) -> Option<f64> {
        let text = answer.text.trim();
        match self.kind {
            MetricType::Contains => {
                let text = self.fold(text);
                Some(share(expected.iter().any(|wanted| text.contains(&self.fold(wanted.trim())))))
            }
            MetricType::ExactMatch => {
                let text = self.fold(text);
                Some(share(expected.iter().any(|wanted| text == self.fold(wanted.trim()))))
            }
            MetricType::Regex => self.pattern.as_ref().map(|pattern| share(pattern.is_match(text))),
            MetricType::JsonValid => Some(share(serde_json::from_str::<IgnoredAny>(text).is_ok())),
            MetricType::RougeL => expected.iter().map(|wanted| rouge::rouge_l(text, wanted)).reduce(f64::max),
            MetricType::Latency => Some(answer.seconds),
            MetricType::Cost => answer.cost,
            MetricType::EmbeddingSimilarity => None,
        }
    }

    fn fold(&self, text: &str) -> String {
        if self.ignore_case { text.to_lowercase() } else { text.to_owned() }
    }
}

/// For each pair of an answer and its expected texts the greatest cosine between the answer's vector and one of theirs.
///
/// # Errors
/// When the texts cannot be embedded.
pub fn similarity(pairs: &[(&str, Vec<&str>)], embedder: &dyn Embed) -> Result<Vec<f64>, String> {
    let mut texts: Vec<&str> =
        pairs.iter().flat_map(|(text, wanted)| std::iter::once(*text).chain(wanted.iter().copied())).collect();
    // Variants and repeats share expected texts, and short answers repeat: each text is embedded once.
    texts.sort_unstable();
    texts.dedup();
    let vectors = embedder.vectors(&texts)?;
    let vector =
        |text: &str| texts.binary_search(&text).ok().and_then(|at| vectors.get(at)).map_or(&[][..], Vec::as_slice);
    Ok(pairs
        .iter()
        .map(|(text, wanted)| {
            let cosines = wanted.iter().map(|wanted| f64::from(cosine(vector(text), vector(wanted))));
            cosines.reduce(f64::max).unwrap_or(0.0)
        })
        .collect())
}

/// How the interval of a metric is computed.
pub fn method(kind: MetricType) -> Method {
    if is_share(kind) { Method::Wilson } else { Method::StudentT }
}

/// Whether each answer scores 0 or 1.
pub fn is_share(kind: MetricType) -> bool {
    matches!(kind, MetricType::Contains | MetricType::Regex | MetricType::ExactMatch | MetricType::JsonValid)
}

/// Whether a greater number means a better answer; time and cost are better when smaller.
pub fn more_is_better(kind: MetricType) -> bool {
    !matches!(kind, MetricType::Latency | MetricType::Cost)
}

fn share(hit: bool) -> f64 {
    if hit { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn score(metric: serde_json::Value, text: &str, expected: &[&str]) -> Option<f64> {
        let mut metric = metric;
        metric["name"] = "m".into();
        let scorer = Scorer::new(&serde_json::from_value(metric).unwrap()).unwrap();
        scorer.score(Answered { text, seconds: 1.5, cost: Some(0.25) }, expected)
    }

    #[test]
    fn each_type_scores_as_documented() {
        for (metric, text, expected, wanted) in [
            (json!({"type": "Contains"}), "use port 8080.", vec!["9090", "8080"], Some(1.0)),
            (json!({"type": "Contains"}), "The Gateway", vec!["gateway"], Some(0.0)),
            (json!({"type": "Contains", "ignoreCase": true}), "The Gateway", vec!["gateway"], Some(1.0)),
            (json!({"type": "ExactMatch"}), " yes\n", vec!["yes"], Some(1.0)),
            (json!({"type": "ExactMatch"}), "yes.", vec!["yes"], Some(0.0)),
            (json!({"type": "ExactMatch", "ignoreCase": true}), "ÄRGER", vec!["ärger"], Some(1.0)),
            (json!({"type": "Regex", "pattern": "^[0-9]+$"}), " 42\n", vec![], Some(1.0)),
            (json!({"type": "Regex", "pattern": "^[0-9]+$"}), "42 apples", vec![], Some(0.0)),
            (json!({"type": "Regex", "pattern": "LEASE", "ignoreCase": true}), "a Lease", vec![], Some(1.0)),
            (json!({"type": "JsonValid"}), " {\"a\": [1]} ", vec![], Some(1.0)),
            (json!({"type": "JsonValid"}), "{} {}", vec![], Some(0.0)),
            (json!({"type": "JsonValid"}), "```json\n{}\n```", vec![], Some(0.0)),
            (json!({"type": "RougeL"}), "police killed the gunman", vec!["x", "police kill the gunman"], Some(0.75)),
            (json!({"type": "Latency"}), "", vec![], Some(1.5)),
            (json!({"type": "Cost"}), "", vec![], Some(0.25)),
            (json!({"type": "EmbeddingSimilarity"}), "a", vec!["a"], None),
        ] {
            assert_eq!(score(metric.clone(), text, &expected), wanted, "{metric} {text}");
        }
    }

    #[test]
    fn a_wrong_pattern_is_told_in_one_line() {
        let metric = serde_json::from_value(json!({"name": "digits", "type": "Regex", "pattern": "(["})).unwrap();
        let error = Scorer::new(&metric).unwrap_err().to_string();
        assert!(
            error.starts_with("metric \"digits\": pattern is no regular expression:") && !error.contains('\n'),
            "{error}"
        );
    }

    struct Letters;
    impl Embed for Letters {
        fn vectors(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, String> {
            let count = |text: &str, letter| text.matches(letter).count() as f32;
            Ok(texts.iter().map(|text| vec![count(text, 'a'), count(text, 'b')]).collect())
        }
    }

    #[test]
    fn similarity_takes_the_nearest_expected_text() {
        let got = similarity(&[("aa", vec!["b", "a"]), ("b", vec!["a"]), ("ab", vec!["ab"])], &Letters).unwrap();
        assert!((got[0] - 1.0).abs() < 1e-6 && got[1].abs() < 1e-6 && (got[2] - 1.0).abs() < 1e-6, "{got:?}");
    }
}
