//! Sample-ratio check: whether units arrived in the shares that the routing table asks for. If not, the arms differ in more than what is
//! tested (lost records, a client that leaves one arm early), and no comparison means anything.
//!
//! For each stratum Pearson's chi-square of the units of all its arms against their weights; an arm that has a share and no record counts with 0.
//! The p-value is the least of the strata's, times their number (Bonferroni: units that come back tie the strata together, so their chi-squares
//! must not be added up).
//!
//! The split is broken when p < 0.001 **and** the same stratum shows it in a way that holds at all looks together: a chi-square that is looked at again and
//! again gets below 0.001 sooner or later. That second test is the Dirichlet mixture of Lindon and Malek, *Anytime-valid inference for multinomial count
//! data*, NeurIPS 2022, arXiv 2011.03567: E = D(κw + n) / (D(κw) Π wⁿ), D the multivariate beta function, w the shares, n the counts. E ≥ 1/0.01 (shared by the strata as 1/(k(k + 1)))
//! has a probability of at most 1 % over all looks while the split is right.

use statrs::distribution::{ChiSquared, ContinuousCDF};
use statrs::function::gamma::ln_gamma;

use std::collections::BTreeMap;

use super::measurements::Measurements;

/// The p-value below which the split is not what was asked for.
pub const LIMIT: f64 = 0.001;
/// Probability, over all looks, that a split that is right is called broken.
pub const FALSE_ALARM: f64 = 0.01;
/// Concentration κ of the Dirichlet mixture: about how many units of one stratum it is meant to be quickest at.
const CONCENTRATION: f64 = 1_000.0;
/// Chi-square is not used while an arm should have fewer units: its distribution would be wrong.
const LEAST_EXPECTED: f64 = 5.0;

/// What the check says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleRatio {
    /// p-value of the chi-square; `None` while there are too few units.
    pub p_value: Option<f64>,
    /// Whether the split is not what was asked for.
    pub broken: bool,
    /// With a broken split, what was asked for and what came, in a sentence.
    pub message: String,
}

struct Group {
    name: String,
    share: f64,
    units: f64,
}

/// Checks the strata that `relevant` names.
pub fn check(measured: &Measurements, relevant: impl Fn(&str) -> bool) -> SampleRatio {
    let mut strata: BTreeMap<&str, Vec<Group>> = BTreeMap::new();
    for arm in measured.arms.iter().filter(|arm| !arm.shadow && relevant(&arm.stratum)) {
        let share = f64::from(arm.weight.clamp(0, 100)) / 100.0;
        if share > 0.0 {
            let name = format!("{} {}", arm.variant, arm.revision);
            strata.entry(&arm.stratum).or_default().push(Group { name, share, units: arm.units as f64 });
        }
    }
    for groups in strata.values_mut() {
        let rest = 1.0 - groups.iter().map(|group| group.share).sum::<f64>();
        if rest > 0.004 {
            groups.push(Group { name: "others".into(), share: rest, units: 0.0 });
        }
    }
    let found: Vec<_> = strata.values().filter_map(|groups| Some((chi_square(groups)?, groups))).collect();
    let count = found.len() as f64;
    let Some((least, groups)) = found.iter().min_by(|a, b| a.0.total_cmp(&b.0)) else {
        return SampleRatio::default();
    };
    let p_value = (least * count).min(1.0);
    let broken = p_value < LIMIT && evidence(groups) >= (count * (count + 1.0) / FALSE_ALARM).ln();
    SampleRatio { p_value: Some(p_value), broken, message: if broken { message(groups) } else { String::new() } }
}

fn chi_square(groups: &[Group]) -> Option<f64> {
    let units: f64 = groups.iter().map(|group| group.units).sum();
    if groups.len() < 2 || groups.iter().any(|group| group.share * units < LEAST_EXPECTED) {
        return None;
    }
    let square: f64 = groups.iter().map(|g| (g.units - g.share * units).powi(2) / (g.share * units)).sum();
    Some(ChiSquared::new(groups.len() as f64 - 1.0).ok()?.sf(square))
}

/// ln E of the Dirichlet mixture.
fn evidence(groups: &[Group]) -> f64 {
    let units: f64 = groups.iter().map(|group| group.units).sum();
    let whole: f64 = groups.iter().map(|group| group.share).sum();
    let each = groups.iter().map(|group| {
        let (share, prior) = (group.share / whole, CONCENTRATION * group.share / whole);
        ln_gamma(prior + group.units) - ln_gamma(prior) - group.units * share.ln()
    });
    each.sum::<f64>() + ln_gamma(CONCENTRATION) - ln_gamma(CONCENTRATION + units)
}

fn message(groups: &[Group]) -> String {
    let units: f64 = groups.iter().map(|group| group.units).sum();
    let worst = groups.iter().max_by(|a, b| {
        let off = |g: &Group| (g.units - g.share * units).powi(2) / (g.share * units);
        off(a).total_cmp(&off(b))
    });
    worst.map_or_else(String::new, |group| {
        format!(
            "the split is not what was asked for: {} got {:.1} % of {units:.0} units instead of {:.0} %",
            group.name,
            100.0 * group.units / units,
            100.0 * group.share
        )
    })
}
