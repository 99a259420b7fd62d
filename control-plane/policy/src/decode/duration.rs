//! Durations as Go and protobuf's JSON write them: "1s", "1.5h", "100ms", "1m30s".

/// Longest accepted: a hundred years, so that sums of a few never overflow.
const MAX_NS: u128 = 100 * 365 * 86_400 * 1_000_000_000;

/// Milliseconds; a finer duration is refused, as in Istio.
pub fn parse_ms(text: &str) -> Result<u64, &'static str> {
    const FORM: &str = "is not a duration such as 1s, 1.5h or 100ms";
    if text == "0" {
        return Ok(0);
    }
    if text.starts_with('-') {
        return Err("must not be negative");
    }
    let mut rest = text;
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(FORM)?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len()));
        total = total.saturating_add(nanoseconds(number, unit).ok_or(FORM)?);
        rest = after;
    }
    match total {
        0 if text.is_empty() => Err(FORM),
        total if total > MAX_NS => Err("is too long"),
        total if total % 1_000_000 != 0 => Err("is finer than a millisecond"),
        total => u64::try_from(total / 1_000_000).map_err(|_| "is too long"),
    }
}

fn nanoseconds(number: &str, unit: &str) -> Option<u128> {
    let scale: u128 = match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60 * 1_000_000_000,
        "h" => 3_600 * 1_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || whole.len() > 20 {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction = &fraction[..fraction.len().min(12)];
    let part = if fraction.is_empty() {
        0
    } else {
        fraction.parse::<u128>().ok()? * scale / 10u128.pow(fraction.len() as u32)
    };
    Some(whole.saturating_mul(scale).saturating_add(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, want) in [
            ("1s", Some(1000)),
            ("1.5h", Some(5_400_000)),
            ("100ms", Some(100)),
            ("1m30s", Some(90_000)),
            (".5s", Some(500)),
            ("0s", Some(0)),
            ("0", Some(0)),
            ("0.25s", Some(250)),
            ("1000000ns", Some(1)),
            ("", None),
            ("1", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
            ("1.2.3s", None),
            ("100us", None),
            ("0.0001s", None),
            ("99999999999999999999h", None),
            ("1 s", None),
        ] {
            assert_eq!(parse_ms(text).ok(), want, "{text}");
        }
    }
}
