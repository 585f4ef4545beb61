//! Bootstrap of a mean over questions (Efron, 1979), with a fixed seed: the same scores always give the same verdict.

const RESAMPLES: usize = 10_000;
const SEED: u64 = 0x6c6c_6d6f_7073;

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// One-sided 95 % lower bound of the mean: the 5th percentile of the means of resamples.
pub fn lower95(values: &[f64]) -> f64 {
    let Some(first) = values.first() else { return 0.0 };
    if values.iter().all(|value| value == first) {
        return *first;
    }
    let mut random = SplitMix(SEED);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let sum: f64 = (0..values.len()).filter_map(|_| values.get(random.below(values.len()))).sum();
            sum / values.len() as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    means.get(RESAMPLES / 20).copied().unwrap_or(*first)
}

/// SplitMix64 (Steele et al., OOPSLA 2014): written out, so that no library's new version changes verdicts.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((u128::from(z) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_those_of_the_normal_approximation() {
        // 300 of 400 ones: standard error 0.02165, one-sided 95 % bound 0.75 − 1.645 × 0.02165.
        let values: Vec<f64> = (0..400).map(|n| if n % 4 == 0 { 0.0 } else { 1.0 }).collect();
        assert_eq!(mean(&values), 0.75);
        assert!((lower95(&values) - 0.7144).abs() < 0.004, "{}", lower95(&values));
        assert_eq!(lower95(&values), lower95(&values));
        assert_eq!(lower95(&[0.5; 7]), 0.5);
        assert_eq!((mean(&[]), lower95(&[])), (0.0, 0.0));
    }
}
