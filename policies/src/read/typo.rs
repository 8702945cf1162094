//! What somebody may have meant.

/// Words longer than this are compared with nothing.
const MAX_CHARS: usize = 64;

/// The closest of `known` to what was written, if it is close enough to be a slip.
pub(crate) fn closest<'a>(
    written: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let folded = fold(written);
    let limit = (folded.len() / 3).clamp(1, 3);
    if folded.len() > MAX_CHARS {
        return None;
    }
    known
        .into_iter()
        .map(|candidate| (distance(&folded, &fold(candidate)), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn fold(word: &str) -> Vec<char> {
    word.chars()
        .filter(|c| !matches!(c, '_' | '-' | ' '))
        .flat_map(char::to_lowercase)
        .take(MAX_CHARS + 1)
        .collect()
}

/// Insertions, deletions, replacements and swaps of neighbours (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX / 2);
            let mut best = (at(&last, j) + usize::from(x != y))
                .min(at(&last, j + 1) + 1)
                .min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_word_that_was_meant() {
        let known = ["fromEndpoints", "fromCIDR", "toPorts", "authentication"];
        for (written, meant) in [
            ("fromEndpoint", "fromEndpoints"),
            ("fromendpoints", "fromEndpoints"),
            ("from_endpoints", "fromEndpoints"),
            ("toProts", "toPorts"),
            ("fromCidr", "fromCIDR"),
            ("authentification", "authentication"),
        ] {
            assert_eq!(closest(written, known), Some(meant), "{written}");
        }
    }

    #[test]
    fn another_word_finds_nothing() {
        assert_eq!(closest("nodeSelector", ["toPorts", "spec"]), None);
        assert_eq!(closest("", ["toPorts"]), None);
        assert_eq!(closest(&"x".repeat(1 << 20), ["toPorts"]), None);
    }
}
