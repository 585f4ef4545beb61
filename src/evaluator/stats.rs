//! Means and their 95 % confidence intervals. Cases are the sampling unit: repeats of a case are averaged first, so asking
//! the same question often does not make the answer look surer than the questions allow.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// 0.975 quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// How an interval was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// Wilson's score interval, for shares (E. B. Wilson, JASA 22, 1927). With repeats it takes the number of cases
    /// for n, which errs on the side of a wider interval: means of 0/1 values vary at most like single ones.
    Wilson,
    /// Student's t interval over the cases' means (Student, Biometrika 6, 1908).
    StudentT,
}

/// A mean over cases and its uncertainty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    /// Cases with at least one value.
    pub cases: usize,
    /// Mean of the cases' means.
    pub mean: f64,
    /// 95 % confidence interval, lower then upper bound; absent with fewer than two cases for Student's t.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<(f64, f64)>,
    /// How the interval was computed.
    pub method: Method,
}

/// Estimates the mean from the values of each case; cases without values do not count. `None` without any value.
pub fn estimate(values: &[Vec<f64>], method: Method) -> Option<Estimate> {
    let means: Vec<f64> = values.iter().filter_map(|repeats| mean(repeats)).collect();
    let overall = mean(&means)?;
    let interval = match method {
        Method::Wilson => Some(wilson(overall, means.len())),
        Method::StudentT => student(&means, overall),
    };
    Some(Estimate { cases: means.len(), mean: overall, interval, method })
}

/// The arithmetic mean, or `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The smallest value that at least the share `q` of the values does not exceed (nearest rank), or `None` of nothing.
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

fn wilson(share: f64, cases: usize) -> (f64, f64) {
    let n = cases as f64;
    let centre = (share + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).max(0.0).sqrt();
    ((centre - half).clamp(0.0, share), (centre + half).clamp(share, 1.0))
}

fn student(means: &[f64], overall: f64) -> Option<(f64, f64)> {
    let n = means.len();
    if n < 2 {
        return None;
    }
    let variance = means.iter().map(|value| (value - overall).powi(2)).sum::<f64>() / (n - 1) as f64;
    let quantile = StudentsT::new(0.0, 1.0, (n - 1) as f64).ok()?.inverse_cdf(0.975);
    let half = quantile * (variance / n as f64).sqrt();
    half.is_finite().then_some((overall - half, overall + half))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 5e-4
    }

    /// Values from Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (score without continuity correction).
    #[test]
    fn wilson_gives_the_published_intervals() {
        for (hits, n, lower, upper) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let values: Vec<Vec<f64>> = (0..n).map(|index| vec![f64::from(u8::from(index < hits))]).collect();
            let (low, high) = estimate(&values, Method::Wilson).unwrap().interval.unwrap();
            assert!(close(low, lower) && close(high, upper), "{hits}/{n}: {low} {high}");
        }
    }

    /// Quantiles of t for 4 and 29 degrees of freedom are 2.776 and 2.045 in any table.
    #[test]
    fn student_uses_the_tables_quantiles() {
        let values: Vec<Vec<f64>> = [1.0, 2.0, 3.0, 4.0, 5.0].iter().map(|value| vec![*value]).collect();
        let got = estimate(&values, Method::StudentT).unwrap();
        let half = 2.776_445 * (2.5f64 / 5.0).sqrt();
        assert!(close(got.mean, 3.0) && close(got.interval.unwrap().0, 3.0 - half), "{got:?}");
        let alternating: Vec<Vec<f64>> = (0..30).map(|index| vec![f64::from(index % 2)]).collect();
        let (low, _) = estimate(&alternating, Method::StudentT).unwrap().interval.unwrap();
        assert!(close(low, 0.5 - 2.045_230 * (0.25f64 * 30.0 / 29.0 / 30.0).sqrt()), "{low}");
    }

    #[test]
    fn too_little_gives_no_interval_or_nothing() {
        assert_eq!(estimate(&[], Method::Wilson), None);
        assert_eq!(estimate(&[vec![]], Method::StudentT), None);
        assert_eq!(estimate(&[vec![0.5]], Method::StudentT).unwrap().interval, None);
        assert!(estimate(&[vec![1.0]], Method::Wilson).unwrap().interval.unwrap().0 < 0.3);
    }

    #[test]
    fn repeats_make_no_interval_narrower() {
        let once: Vec<Vec<f64>> = (0..20).map(|index| vec![f64::from(index % 2)]).collect();
        let often: Vec<Vec<f64>> = once.iter().map(|case| case.repeat(10)).collect();
        for method in [Method::Wilson, Method::StudentT] {
            assert_eq!(estimate(&once, method), estimate(&often, method));
        }
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(
            (quantile(&values, 0.5), quantile(&values, 0.95), quantile(&values, 0.0)),
            (Some(3.0), Some(5.0), Some(1.0))
        );
        assert_eq!(quantile(&[], 0.5), None);
    }

    proptest! {
        #[test]
        fn intervals_hold_the_mean(values in prop::collection::vec(prop::collection::vec(0.0f64..=1.0, 0..4), 0..40)) {
            for method in [Method::Wilson, Method::StudentT] {
                if let Some(Estimate { mean, interval: Some((low, high)), .. }) = estimate(&values, method) {
                    prop_assert!(low <= mean + 1e-12 && mean <= high + 1e-12);
                    if method == Method::Wilson {
                        prop_assert!((0.0..=1.0).contains(&low) && (0.0..=1.0).contains(&high));
                    }
                }
            }
        }
    }
}
