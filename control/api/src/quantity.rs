//! `resource.Quantity`: amounts such as `250m`, `128Mi` and `1e3`, kept exactly.

use std::{cmp::Ordering, fmt, ops};

/// How a quantity was written, and will be again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `1500m`, `2k`.
    DecimalSi,
    /// `1536Mi`.
    BinarySi,
    /// `1e3`.
    DecimalExponent,
}

const NANO: i128 = 1_000_000_000;

/// An exact amount, down to billionths; finer parts are rounded up, as Kubernetes does.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// A text that is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Nothing like a number with a suffix.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// A number, and a suffix that does not exist.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::DecimalSi,
    };

    /// So many thousandths, as of a CPU.
    pub fn from_milli(milli: i64) -> Self {
        Self {
            nanos: i128::from(milli) * (NANO / 1000),
            format: Format::DecimalSi,
        }
    }

    /// So many whole ones, to be written in `format`.
    pub fn from_value(value: i64, format: Format) -> Self {
        Self {
            nanos: i128::from(value) * NANO,
            format,
        }
    }

    /// Reads a quantity.
    ///
    /// # Errors
    /// When the text is none.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
            None => return Err(QuantityError::Format),
        };
        let number_len = rest
            .bytes()
            .take_while(|byte| byte.is_ascii_digit() || *byte == b'.')
            .count();
        let (number, suffix) = rest.split_at(number_len);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        let (base, exponent, format) = suffix_of(suffix)?;

        // Digits as one integer, scaled by 10^-fraction_len.
        let mut digits: i128 = 0;
        let mut dropped = 0i32;
        let mut is_inexact = false;
        for byte in whole.bytes().chain(fraction.bytes()) {
            match digits
                .checked_mul(10)
                .and_then(|value| value.checked_add(i128::from(byte - b'0')))
            {
                Some(value) if value < i128::MAX / 2048 => digits = value,
                _ => {
                    dropped += 1;
                    is_inexact |= byte != b'0';
                }
            }
        }
        let fraction_len = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
        let scale = dropped - fraction_len.min(1000) + 9;
        let mut nanos = digits;
        let mut ten = scale;
        if base == 2 {
            for _ in 0..exponent / 10 {
                nanos = nanos.saturating_mul(1024);
            }
        } else {
            ten += exponent;
        }
        while ten > 0 && nanos != 0 {
            nanos = nanos.saturating_mul(10);
            ten -= 1;
        }
        while ten < 0 && nanos != 0 {
            is_inexact |= nanos % 10 != 0;
            nanos /= 10;
            ten += 1;
        }
        if is_inexact {
            nanos = nanos.saturating_add(1);
        }
        // Kubernetes caps at 2^63-1.
        nanos = nanos.min(i128::from(i64::MAX) * NANO);
        Ok(Self {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }

    /// Thousandths, rounded up.
    pub fn milli(&self) -> i128 {
        div_up(self.nanos, NANO / 1000)
    }

    /// Whole ones (bytes), rounded up.
    pub fn value(&self) -> i128 {
        div_up(self.nanos, NANO)
    }

    /// Whether it is less than nothing.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether it is a whole number.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANO == 0
    }
}

fn div_up(value: i128, by: i128) -> i128 {
    if value >= 0 {
        (value + by - 1) / by
    } else {
        -((-value + by - 1) / by)
    }
}

fn suffix_of(suffix: &str) -> Result<(u8, i32, Format), QuantityError> {
    Ok(match suffix {
        "" => (10, 0, Format::DecimalSi),
        "n" => (10, -9, Format::DecimalSi),
        "u" => (10, -6, Format::DecimalSi),
        "m" => (10, -3, Format::DecimalSi),
        "k" => (10, 3, Format::DecimalSi),
        "M" => (10, 6, Format::DecimalSi),
        "G" => (10, 9, Format::DecimalSi),
        "T" => (10, 12, Format::DecimalSi),
        "P" => (10, 15, Format::DecimalSi),
        "E" => (10, 18, Format::DecimalSi),
        "Ki" => (2, 10, Format::BinarySi),
        "Mi" => (2, 20, Format::BinarySi),
        "Gi" => (2, 30, Format::BinarySi),
        "Ti" => (2, 40, Format::BinarySi),
        "Pi" => (2, 50, Format::BinarySi),
        "Ei" => (2, 60, Format::BinarySi),
        _ => {
            let Some(exponent) = suffix.strip_prefix(['e', 'E']) else {
                let is_word = suffix.bytes().all(|byte| b"eEinumkKMGTP".contains(&byte));
                return Err(if is_word {
                    QuantityError::Suffix
                } else {
                    QuantityError::Format
                });
            };
            let exponent: i32 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
            (10, exponent.clamp(-60, 60), Format::DecimalExponent)
        }
    })
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, and the largest suffix that needs none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        // Kubernetes writes small binary quantities as decimal ones, and rounds up the others.
        let is_binary = self.format == Format::BinarySi && self.nanos.abs() >= 1024 * NANO;
        if is_binary {
            let mut value = self.value();
            let mut step = 0;
            while step < 6 && value % 1024 == 0 {
                value /= 1024;
                step += 1;
            }
            return write!(
                f,
                "{value}{}",
                ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][step]
            );
        }
        let mut value = self.nanos;
        let mut step = 0;
        while step < 9 && value % 1000 == 0 {
            value /= 1000;
            step += 1;
        }
        match self.format {
            Format::DecimalExponent => {
                let exponent = i32::try_from(step).unwrap_or_default() * 3 - 9;
                if exponent == 0 {
                    write!(f, "{value}")
                } else {
                    write!(f, "{value}e{exponent}")
                }
            }
            _ => write!(
                f,
                "{value}{}",
                ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][step]
            ),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl ops::Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: self.nanos + other.nanos,
            format,
        }
    }
}

impl ops::AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl ops::Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            nanos: self.nanos - other.nanos,
            format: self.format,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_written_in_their_canonical_form() {
        for (text, canonical, milli, value) in [
            ("0", "0", 0, 0),
            ("100m", "100m", 100, 1),
            ("0.1", "100m", 100, 1),
            ("1", "1", 1000, 1),
            ("1.5", "1500m", 1500, 2),
            ("1000m", "1", 1000, 1),
            ("1k", "1k", 1_000_000, 1000),
            ("128Mi", "128Mi", 134_217_728_000, 134_217_728),
            ("1.5Gi", "1536Mi", 1_610_612_736_000, 1_610_612_736),
            ("1024Mi", "1Gi", 1_073_741_824_000, 1_073_741_824),
            ("1e3", "1e3", 1_000_000, 1000),
            ("12E2", "1200", 1_200_000, 1200),
            (
                "1E",
                "1E",
                1_000_000_000_000_000_000_000,
                1_000_000_000_000_000_000,
            ),
            ("0.5Mi", "512Ki", 524_288_000, 524_288),
            ("1.0001Ki", "1025", 1_024_103, 1025),
            ("0.1Ki", "102400m", 102_400, 103),
            ("512", "512", 512_000, 512),
            ("-1", "-1", -1000, -1),
            ("+2", "2", 2000, 2),
            ("5n", "5n", 1, 1),
            ("0.0000000001", "1n", 1, 1),
            (".5", "500m", 500, 1),
            ("5.", "5", 5000, 5),
        ] {
            let quantity = Quantity::parse(text).expect(text);
            assert_eq!(quantity.to_string(), canonical, "{text}");
            assert_eq!(quantity.milli(), milli, "{text}");
            assert_eq!(quantity.value(), value, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "", "a", "1x", "1 Gi", "1.2.3", "--1", "1Kii", "1e", "1e1.5", "Mi", "-", "1MiB",
        ] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
        assert_eq!(
            Quantity::parse("lots").expect_err("no number").to_string(),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        );
    }

    #[test]
    fn quantities_of_different_suffixes_compare_and_add() {
        let q = |text| Quantity::parse(text).expect("test quantity");
        assert!(q("1Gi") > q("1G"));
        assert_eq!(q("1000m"), q("1"));
        assert_eq!((q("1Gi") + q("512Mi")).to_string(), "1536Mi");
        assert_eq!((Quantity::ZERO + q("64Mi")).to_string(), "64Mi");
        assert_eq!((q("2") - q("500m")).to_string(), "1500m");
    }

    #[test]
    fn too_large_quantities_are_capped() {
        assert_eq!(
            Quantity::parse("99999999999999999999Ei")
                .expect("number")
                .value(),
            i128::from(i64::MAX)
        );
        assert_eq!(
            Quantity::parse("1e60").expect("number").value(),
            i128::from(i64::MAX)
        );
    }
}
