//! Hexadecimal digits of bytes.

/// Lower-case digits of bytes.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of digits in either case; `None`: a character is not a digit, or the last byte is incomplete.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().map(|c| c.to_digit(16)).collect::<Option<Vec<u32>>>()?;
    // Two digits are at most 255.
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_return_from_their_digits() {
        assert_eq!(encode(&[0, 7, 0xab, 255]), "0007abff");
        assert_eq!(decode("0007ABff"), Some(vec![0, 7, 0xab, 255]));
        assert_eq!(decode(""), Some(Vec::new()));
        for text in ["0", "0g", "+1", "0\u{e9}", "abc"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
