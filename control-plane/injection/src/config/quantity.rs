//! Kubernetes' quantities: `500m`, `1.5`, `64Mi`, `1e3`.

/// Suffixes, and their meanings as factors.
const SUFFIXES: &[(&str, f64)] = &[
    ("", 1.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
];

/// The value of a positive quantity; `None`: it is none.
fn parse(text: &str) -> Option<f64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let exponent = suffix.strip_prefix(['e', 'E']).filter(|power| power.parse::<i8>().is_ok());
    let factor = match exponent {
        Some(power) => 10f64.powi(power.parse::<i8>().ok()?.into()),
        None => SUFFIXES.iter().find(|(known, _)| *known == suffix)?.1,
    };
    Some(number.parse::<f64>().ok()? * factor).filter(|value| value.is_finite())
}

/// Whether the API server accepts it as an amount of a resource.
pub(crate) fn is_valid(text: &str) -> bool {
    parse(text).is_some()
}

/// The number of whole processors that an amount needs, one at least.
pub(crate) fn processors(text: &str) -> Option<u32> {
    let amount = parse(text)?.ceil();
    // A node has fewer.
    (amount <= 4096.0).then_some((amount as u32).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_numbers_with_a_suffix() {
        for (text, expected) in [
            ("2", Some(2)),
            ("500m", Some(1)),
            ("1500m", Some(2)),
            ("1.5", Some(2)),
            ("0", Some(1)),
            ("1e1", Some(10)),
            ("1E1", Some(10)),
            ("2k", Some(2000)),
            ("1Gi", None),
            ("1E", None),
            ("lots", None),
            ("1 Mi", None),
            ("-1", None),
            ("", None),
            ("1.2.3", None),
            ("1mi", None),
        ] {
            assert_eq!(processors(text), expected, "{text}");
        }
        assert!(is_valid("64Mi") && is_valid("1Gi") && is_valid("1E") && !is_valid("64MB") && !is_valid("inf"));
    }
}
