//! Sentences for people.

use super::*;
use crate::api::rollout::{Direction, ExperimentVerdict};
use crate::experiment::words::{Finding, decimal, sentence};

fn say(kind: MetricKind, tolerated: f64, goal: bool, interval: (f64, f64, f64), verdict: ExperimentVerdict) -> String {
    let event = (kind == MetricKind::Event).then(|| "bought".to_owned());
    let compared = Compared { metric: Metric { kind, event, better: kind.direction() }, tolerated };
    sentence(&Finding {
        arm: "concise",
        control: "control",
        compared: &compared,
        goal,
        interval,
        units: (500, 500),
        min_units: 100,
        verdict,
    })
}

#[test]
fn each_metric_and_verdict_has_its_words() {
    use ExperimentVerdict::{Better, Inconclusive, Invalid, NotWorse, Worse};
    let cases = [
        (
            say(MetricKind::Thumbs, 0.0, true, (-0.121, -0.203, -0.039), Worse),
            "concise: 12.1 points fewer thumbs up than control (between 3.9 and 20.3 fewer); worse",
        ),
        (
            say(MetricKind::Event, 0.0, true, (0.04, 0.01, 0.07), Better),
            "concise: 4.0 points more 'bought' than control (between 1.0 and 7.0 more); better",
        ),
        (
            say(MetricKind::ErrorRate, 0.05, false, (0.19, 0.07, 0.31), Worse),
            "concise: 19.0 points more failed requests than control (between 7.0 and 31.0 more); worse, by more than the 5.0 points tolerated",
        ),
        (
            say(MetricKind::ErrorRate, 0.05, false, (0.19, 0.03, 0.31), Worse),
            "concise: 19.0 points more failed requests than control (between 3.0 and 31.0 more); worse, very likely by more than the 5.0 points tolerated",
        ),
        (
            say(MetricKind::ErrorRate, 0.05, false, (0.0, -0.02, 0.02), NotWorse),
            "concise: the same share of failed requests as control (between 2.0 fewer and 2.0 more); not worse: a loss above 5.0 points is ruled out",
        ),
        (
            say(MetricKind::Latency, 0.0, false, (-0.35, -0.5, -0.2), Better),
            "concise: 0.35 s faster than control (between 0.20 and 0.50 faster); better",
        ),
        (
            say(MetricKind::Cost, 0.0, false, (0.00012, -0.0001, 0.00034), Inconclusive),
            "concise: 0.00012 higher cost than control (between 0.0001 lower and 0.00034 higher); not enough data to rule out a loss",
        ),
        (
            say(MetricKind::JudgeScore, 0.0, true, (0.012, -0.03, 0.054), Inconclusive),
            "concise: 0.012 higher judge score than control (between 0.030 lower and 0.054 higher); not enough data to tell which is better",
        ),
        (
            say(MetricKind::FeedbackScore, 0.0, true, (0.1, 0.05, 0.15), Invalid),
            "concise: 0.100 higher feedback score than control (between 0.050 and 0.150 higher); does not count, because the split is not what was asked for",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
    assert_eq!(MetricKind::Thumbs.direction(), Direction::Increase);
}

#[test]
fn numbers_of_the_status_are_decimals_of_the_schema() {
    let text = |value| decimal(value).map(|number| number.0);
    assert_eq!(text(0.123_456_78).as_deref(), Some("0.1235"));
    assert_eq!(text(0.000_123_456).as_deref(), Some("0.0001235"));
    assert_eq!(text(-1e-12).as_deref(), Some("0.0000"));
    assert_eq!(text(-12.5).as_deref(), Some("-12.5000"));
    assert_eq!((text(f64::NAN), text(1e12)), (None, None));
}
