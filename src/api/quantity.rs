//! Decimal numbers as strings: CRDs carry no floats, because clients round them differently.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A decimal number written as a string, such as `"0.80"`. At most 12 digits before and 9 after the point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Decimal(pub String);

impl Decimal {
    /// The number, or `None` when the text is not a decimal number of the documented form.
    pub fn value(&self) -> Option<f64> {
        let digits = self.0.strip_prefix('-').unwrap_or(&self.0);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        let number =
            |part: &str, max: usize| !part.is_empty() && part.len() <= max && part.bytes().all(|b| b.is_ascii_digit());
        (number(whole, 12) && number(fraction, 9)).then(|| self.0.parse().ok())?
    }

    /// Writes a number with four decimals; what is not finite becomes `None`.
    pub fn from_f64(value: f64) -> Option<Self> {
        value.is_finite().then(|| Self(format!("{value:.4}")))
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Decimal {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl JsonSchema for Decimal {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Decimal".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": r"^-?[0-9]{1,12}(\.[0-9]{1,9})?$", "maxLength": 23})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_schema_admits_and_nothing_else() {
        for (text, value) in [("0.80", Some(0.8)), ("-2", Some(-2.0)), ("12.5", Some(12.5))] {
            assert_eq!(Decimal::from(text).value(), value, "{text}");
        }
        for text in ["", "-", "1.", ".5", "1e3", "NaN", "inf", "1234567890123", "+1"] {
            assert_eq!(Decimal::from(text).value(), None, "{text}");
        }
    }
}
