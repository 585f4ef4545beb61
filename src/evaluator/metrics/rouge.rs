//! ROUGE-L: the longest common subsequence of words (C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3.1).

/// F-measure with equal weight of precision and recall, 0 to 1. Words are runs of letters and digits, without regard to case.
///
/// `P = LCS / |candidate|`, `R = LCS / |reference|`, `F = 2PR / (P + R) = 2 LCS / (|candidate| + |reference|)`.
pub fn rouge_l(candidate: &str, reference: &str) -> f64 {
    let (candidate, reference) = (words(candidate), words(reference));
    let total = candidate.len() + reference.len();
    if total == 0 {
        return 0.0;
    }
    2.0 * common_subsequence(&candidate, &reference) as f64 / total as f64
}

fn words(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|character: char| !character.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Length of the longest common subsequence, in one row of memory.
fn common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        let mut left = 0;
        for (other, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let above = *cell;
            *cell = if word == other { diagonal + 1 } else { above.max(left) };
            diagonal = above;
            left = *cell;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The examples of Lin 2004, section 3.1: S1 is the reference.
    #[test]
    fn gives_the_papers_values() {
        let reference = "police killed the gunman";
        assert_eq!(rouge_l("police kill the gunman", reference), 0.75);
        assert_eq!(rouge_l("the gunman kill police", reference), 0.5);
        assert_eq!(rouge_l("the gunman police killed", reference), 0.5);
    }

    #[test]
    fn case_and_punctuation_do_not_matter_and_nothing_scores_nothing() {
        assert_eq!(rouge_l("Port: 8080!", "port 8080"), 1.0);
        assert_eq!(rouge_l("", "a"), 0.0);
        assert_eq!(rouge_l("…", "—"), 0.0);
        assert_eq!(rouge_l("a b c d", "a b"), 2.0 / 3.0);
    }

    proptest! {
        #[test]
        fn is_symmetric_and_bounded(a in "[abc ]{0,30}", b in "[abc ]{0,30}") {
            let score = rouge_l(&a, &b);
            prop_assert!((0.0..=1.0).contains(&score));
            prop_assert_eq!(score, rouge_l(&b, &a));
        }
    }
}
