//! Numbers of experiment metrics as people read them.

use crate::api::rollout::{Direction, MetricKind};

/// How the numbers of a metric are written.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    /// Name for people.
    pub name: String,
    /// What the axis of differences says.
    pub axis: &'static str,
    /// Shown numbers are so many times the metric's.
    pub factor: f64,
    value_suffix: &'static str,
    suffix: &'static str,
    digits: usize,
    kind: Option<MetricKind>,
}

impl Measure {
    /// The measure of a metric as statuses name it: `ErrorRate`, `Event/bought`, …
    pub fn of(metric: &str) -> Self {
        use MetricKind::{Cost, ErrorRate, Event, FeedbackScore, JudgeScore, Latency, Thumbs};
        let known = MetricKind::named(metric);
        let kind = known.map(|(kind, _)| kind);
        let share = |name: &str| Self {
            name: name.to_owned(),
            axis: "percentage points",
            factor: 100.0,
            value_suffix: " %",
            suffix: " pp",
            digits: 1,
            kind,
        };
        let plain = |name: &str, axis, suffix, digits| Self {
            name: name.to_owned(),
            axis,
            factor: 1.0,
            value_suffix: suffix,
            suffix,
            digits,
            kind,
        };
        match kind {
            Some(Thumbs) => share("Thumbs up"),
            Some(Event) => share(&format!("Event “{}”", known.and_then(|(_, event)| event).unwrap_or_default())),
            Some(ErrorRate) => share("Error rate"),
            Some(Latency) => plain("Latency", "seconds", " s", 2),
            Some(Cost) => plain("Cost", "cost of an answer", "", 4),
            Some(FeedbackScore) => plain("Feedback score", "score, −1 to 1", "", 3),
            Some(JudgeScore) => plain("Judge score", "score, 0 to 1", "", 3),
            None => plain(metric, "difference", "", 4),
        }
    }

    /// A mean.
    pub fn value(&self, value: f64) -> String {
        format!("{}{}", decimal(value * self.factor, self.digits), self.value_suffix)
    }

    /// A difference with its sign.
    pub fn difference(&self, value: f64) -> String {
        format!("{}{}", self.signed(value), self.suffix)
    }

    /// A difference with its sign, without the unit.
    pub fn signed(&self, value: f64) -> String {
        let text = decimal(value * self.factor, self.digits);
        if text.starts_with('−') || text.bytes().all(|byte| b"0.".contains(&byte)) {
            text
        } else {
            format!("+{text}")
        }
    }

    /// Both ends of an interval.
    pub fn interval(&self, lower: f64, upper: f64) -> String {
        format!("{} to {}{}", self.signed(lower), self.signed(upper), self.suffix)
    }

    /// Which way is better, unless the spec says otherwise.
    pub fn better(&self, asked: Option<Direction>) -> Option<Direction> {
        asked.or(self.kind.map(MetricKind::direction))
    }
}

/// A number with so many decimals and a true minus sign; never a negative zero.
pub fn decimal(value: f64, digits: usize) -> String {
    let text = format!("{:.digits$}", value.abs());
    let zero = text.bytes().all(|byte| b"0.".contains(&byte));
    if value < 0.0 && !zero { format!("−{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percent_and_differences_have_signs() {
        let rate = Measure::of("ErrorRate");
        assert_eq!((rate.value(0.125).as_str(), rate.difference(0.012).as_str()), ("12.5 %", "+1.2 pp"));
        assert_eq!(rate.difference(-0.0001), "0.0 pp");
        assert_eq!(rate.interval(-0.031, 0.004), "−3.1 to +0.4 pp");
        assert_eq!(rate.better(None), Some(Direction::Decrease));
        let event = Measure::of("Event/bought");
        assert_eq!((event.name.as_str(), event.axis), ("Event “bought”", "percentage points"));
        for kind in MetricKind::ALL {
            let factor = if kind.is_share() { 100.0 } else { 1.0 };
            assert_eq!(Measure::of(&format!("{kind:?}")).factor.to_bits(), f64::to_bits(factor), "{kind:?}");
        }
        assert_eq!(Measure::of("Latency").value(1.5), "1.50 s");
        assert_eq!(Measure::of("Something").difference(2.0), "+2.0000");
    }
}
