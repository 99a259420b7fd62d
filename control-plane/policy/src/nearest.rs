//! The nearest known word to a misspelled one. It is small enough that a dependency is not worthwhile.

/// Bound on the words that are compared or listed: lists come from files, and each problem has one.
const MOST: usize = 100;

const MEANT: &str = ", did you mean `";

/// ", did you mean `x`?" if one of `known` is near, else the list of known words.
pub fn suggest(word: &str, known: &[&str], introduction: &str) -> String {
    let compared = &known[..known.len().min(MOST)];
    match nearest(word, compared) {
        Some(near) => format!("{MEANT}{near}`?"),
        None if known.len() > MOST / 4 => format!("; {introduction} {}, ...", known[..MOST / 4].join(", ")),
        None => format!("; {introduction} {}", known.join(", ")),
    }
}

/// The suggestion of [`suggest`] in a text.
pub(crate) fn suggested(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once(MEANT)?;
    rest.split('`').next()
}

/// The word of `known` that needs the fewest edits, if these are few for its length. Case is ignored.
pub(crate) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    if word.len() > 100 {
        return None;
    }
    let word = word.to_lowercase();
    let length = word.chars().count();
    // The difference in length is a lower bound of the edits.
    let likely = known.iter().filter(|candidate| candidate.chars().count().abs_diff(length) <= candidate.len() / 3);
    let distances = likely.map(|candidate| (distance(&word, &candidate.to_lowercase()), *candidate));
    distances.min_by_key(|(edits, _)| *edits).filter(|(edits, near)| *edits <= near.len() / 3).map(|(_, near)| near)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let replaced = rows[i][j] + usize::from(a[i] != b[j]);
            let mut least = replaced.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words() {
        let known = ["httpHeaderName", "httpCookie", "maglev"];
        for (word, want) in [
            ("httpHeadername", Some("httpHeaderName")),
            ("httpCokie", Some("httpCookie")),
            ("magleb", Some("maglev")),
            ("MAGLEV", Some("maglev")),
            ("mgalev", Some("maglev")),
            ("ring", None),
        ] {
            assert_eq!(nearest(word, &known), want, "{word}");
        }
        assert_eq!(nearest(&"x".repeat(10_000), &known), None);
        let text = format!("unknown{}", suggest("magleb", &known, "known are"));
        assert_eq!(suggested(&text), Some("maglev"));
        assert_eq!(suggested(&format!("unknown{}", suggest("ring", &known, "known are"))), None);
    }
}
