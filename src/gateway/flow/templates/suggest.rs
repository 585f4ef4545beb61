//! "Did you mean": the known name nearest to an unknown one.

/// The candidate nearest to `name`, if one is near enough to be a slip of the pen.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// The end of a message about an unknown name: what may have been meant, or what there is.
pub fn suggestion<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> String {
    suggestion_within("", name, candidates)
}

/// As [`suggestion`], naming the candidates as members of `prefix` (which ends with a dot).
pub(super) fn suggestion_within<'a>(
    prefix: &str,
    name: &str,
    candidates: impl IntoIterator<Item = &'a str> + Clone,
) -> String {
    if let Some(candidate) = nearest(name, candidates.clone()) {
        return format!("; did you mean `{prefix}{candidate}`?");
    }
    let mut known: Vec<&str> = candidates.into_iter().collect();
    known.sort_unstable();
    match known.as_slice() {
        [] => String::new(),
        [one] => format!("; there is only `{prefix}{one}`"),
        many => format!("; known are `{prefix}{}`", many.join(&format!("`, `{prefix}"))),
    }
}

/// Edits (insert, delete, replace, swap of neighbours) between two names, letters' case aside.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().flat_map(char::to_lowercase).take(128).collect();
    let b: Vec<char> = b.chars().flat_map(char::to_lowercase).take(128).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, right) in b.iter().enumerate() {
            let replaced = last.get(j).copied().unwrap_or(0) + usize::from(left != right);
            let deleted = last.get(j + 1).copied().unwrap_or(0) + 1;
            let inserted = row.last().copied().unwrap_or(0) + 1;
            let mut best = replaced.min(deleted).min(inserted);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(right) && b.get(j - 1) == Some(left);
            if swapped {
                best = best.min(before.get(j - 1).copied().unwrap_or(0) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_slips_and_leaves_strangers() {
        let known = ["question", "language", "writer"];
        for (typed, meant) in [
            ("qestion", Some("question")),
            ("Question", Some("question")),
            ("wirter", Some("writer")),
            ("langage", Some("language")),
            ("answer", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, known), meant, "{typed}");
        }
        assert_eq!(suggestion("answer", ["writer"]), "; there is only `writer`");
        assert_eq!(suggestion("xyz", ["bcd", "abc"]), "; known are `abc`, `bcd`");
        assert_eq!(suggestion("xyz", []), "");
    }

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in [("", "abc", 3), ("abc", "abc", 0), ("abcd", "acbd", 1), ("kitten", "sitting", 3)] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
            assert_eq!(distance(b, a), edits, "{b} {a}");
        }
    }
}
