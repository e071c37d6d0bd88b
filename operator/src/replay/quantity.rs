//! Quantities as the HPA reads them: in whole thousandths, rounded away from zero. Never wraps around:
//! what is too large is the largest.

/// Digits that are looked at; of what comes after, only whether it is nothing.
const DIGITS: usize = 20;

/// A quantity's parts: digits times 10^`ten` times 2^`two`, and perhaps a little more.
struct Parts {
    negative: bool,
    digits: u128,
    more: bool,
    ten: i32,
    two: u32,
}

/// The thousandths of a quantity such as 100, 500m, 1e3 or 10Mi (apimachinery's `MilliValue`).
///
/// # Errors
/// When the text is not a quantity.
pub fn thousandths(text: &str) -> Result<i64, String> {
    let parts = split(text)?;
    let exponent = parts.ten.saturating_add(3);
    let scaled = parts.digits.checked_shl(parts.two).unwrap_or(u128::MAX);
    let power = 10u128.checked_pow(exponent.unsigned_abs());
    let magnitude = match (exponent >= 0, power) {
        _ if scaled == 0 => u128::from(parts.more),
        (true, Some(power)) => scaled.saturating_mul(power),
        (true, None) => u128::MAX,
        (false, Some(power)) => {
            let up = parts.more || !scaled.is_multiple_of(power);
            scaled / power + u128::from(up)
        }
        (false, None) => 1,
    };
    let magnitude = i64::try_from(magnitude).unwrap_or(i64::MAX);
    Ok(if parts.negative {
        -magnitude
    } else {
        magnitude
    })
}

/// The number that a quantity means, as apimachinery's `AsApproximateFloat64` computes it.
///
/// # Errors
/// When the text is not a quantity.
pub fn approximate(text: &str) -> Result<f64, String> {
    let parts = split(text)?;
    let value = parts.digits as f64 * 2f64.powi(parts.two.cast_signed()) * 10f64.powi(parts.ten);
    Ok(if parts.negative { -value } else { value })
}

fn split(text: &str) -> Result<Parts, String> {
    let wrong = || format!("{text:?} is not a quantity such as 100, 500m or 10Mi");
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let end = unsigned
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(wrong());
    }
    let (ten, two) = match suffix {
        "" => (0, 0),
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E']).ok_or_else(wrong)?;
            (digits.parse::<i32>().map_err(|_| wrong())?, 0)
        }
    };
    let mut parts = Parts {
        negative: text.starts_with('-'),
        digits: 0,
        more: false,
        ten,
        two,
    };
    let mut seen = 0;
    for (i, c) in whole.chars().chain(fraction.chars()).enumerate() {
        let digit = c.to_digit(10).ok_or_else(wrong)?;
        let in_fraction = i >= whole.len();
        if seen == DIGITS {
            parts.more |= digit > 0;
            parts.ten = parts.ten.saturating_add(i32::from(!in_fraction));
            continue;
        }
        parts.digits = parts.digits * 10 + u128::from(digit);
        parts.ten = parts.ten.saturating_sub(i32::from(in_fraction));
        seen += usize::from(parts.digits > 0);
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousandths_are_rounded_away_from_zero() {
        for (text, thousandths_) in [
            ("0", 0),
            ("100", 100_000),
            ("500m", 500),
            ("0.0001", 1),
            ("-0.0001", -1),
            ("1n", 1),
            ("1e-30", 1),
            ("-3", -3000),
            ("33.333333", 33_334),
            ("1k", 1_000_000),
            ("1e3", 1_000_000),
            ("1.5E+2", 150_000),
            ("10Mi", 10_485_760_000),
            ("1.5Ki", 1_536_000),
            (".5", 500),
            ("5.", 5000),
            ("0.300000000000000000000000001", 301),
            ("9223372036854775807m", i64::MAX),
            ("9E", i64::MAX),
            ("-8Ei", -i64::MAX),
            ("1e400", i64::MAX),
            ("000000000000000000000000000000007", 7000),
            ("123456789012345678901234567890m", i64::MAX),
        ] {
            assert_eq!(thousandths(text), Ok(thousandths_), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_an_error() {
        for text in [
            "", "-", ".", "m", "1.2.3", "1kk", "1 0", "ten", "1e", "0x10", "1e1.5",
        ] {
            assert!(thousandths(text).is_err(), "{text}");
        }
    }

    #[test]
    fn approximate_is_the_number() {
        for (text, value) in [("0.1", 0.1), ("50m", 0.05), ("1Ki", 1024.0), ("-2", -2.0)] {
            assert!((approximate(text).unwrap() - value).abs() < 1e-15, "{text}");
        }
    }
}
