//! Kubernetes' quantities (`500m`, `128Mi`), as numbers. Pure.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Thousandths, rounded up; `None` for what is no quantity.
pub(crate) fn millis(quantity: &Quantity) -> Option<i128> {
    parse_nanos(&quantity.0).map(|nanos| div_ceil(nanos, 1_000_000))
}

/// Whole units, rounded up.
pub(crate) fn value(quantity: &Quantity) -> Option<i128> {
    parse_nanos(&quantity.0).map(|nanos| div_ceil(nanos, 1_000_000_000))
}

/// Whole units where a negative number makes no sense.
pub(crate) fn bytes(quantity: &Quantity) -> Option<u64> {
    value(quantity).map(|value| u64::try_from(value.max(0)).unwrap_or(u64::MAX))
}

fn div_ceil(a: i128, b: i128) -> i128 {
    a.div_euclid(b) + i128::from(a.rem_euclid(b) != 0)
}

fn parse_nanos(text: &str) -> Option<i128> {
    const NANO: i128 = 1_000_000_000;
    let text = text.trim();
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let scale: (i128, i128) = match suffix {
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "" => (1, 1),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10i128.checked_pow(power.unsigned_abs())?;
            if power < 0 { (1, factor) } else { (factor, 1) }
        }
    };
    let (sign, digits) = match number.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let parse = |digits: &str| {
        if digits.is_empty() {
            Some(0)
        } else {
            digits.parse::<i128>().ok()
        }
    };
    let fraction = &fraction[..fraction.len().min(9)];
    let numerator = parse(whole)?.checked_mul(NANO)?
        + parse(fraction)? * 10i128.pow(9 - u32::try_from(fraction.len()).ok()?);
    numerator
        .checked_mul(scale.0)
        .map(|nanos| sign * div_ceil(nanos, scale.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        let table = [
            ("500m", Some(500)),
            ("1", Some(1000)),
            ("0.1", Some(100)),
            ("1.5", Some(1500)),
            (".5", Some(500)),
            ("100u", Some(1)),
            ("2k", Some(2_000_000)),
            ("1Ki", Some(1_024_000)),
            ("1e3", Some(1_000_000)),
            ("1E-1", Some(100)),
            ("-1", Some(-1000)),
            ("", None),
            ("Mi", None),
            ("1Xi", None),
        ];
        for (text, expected) in table {
            assert_eq!(millis(&Quantity(text.into())), expected, "{text}");
        }
        assert_eq!(bytes(&Quantity("128Mi".into())), Some(128 << 20));
        assert_eq!(
            bytes(&Quantity("8E".into())),
            Some(8_000_000_000_000_000_000)
        );
    }
}
