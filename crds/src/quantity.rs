//! A Kubernetes quantity ("100", 100, "500m", "10Mi") as a number; never rounds.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The grammar of apimachinery's `resource.Quantity`, without a sign: no target is negative.
pub const PATTERN: &str =
    r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(([KMGTPE]i)|[numkMGTPE]|([eE][-+]?[0-9]+))?$";

/// A quantity that keeps the text it was written as.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantity {
    text: String,
    value: f64,
}

impl Quantity {
    /// The number, in the unit of what it describes.
    #[must_use]
    pub fn get(&self) -> f64 {
        self.value
    }
}

/// A value in the way the API's own clients print it: whole numbers plain, others in thousandths.
#[must_use]
pub fn format(value: f64) -> String {
    if !value.is_finite() {
        return "unknown".into();
    }
    let milli = (value * 1000.0).round();
    if (milli % 1000.0) == 0.0 {
        format!("{}", milli / 1000.0)
    } else {
        format!("{milli}m")
    }
}

/// The largest and the smallest that apimachinery keeps: it caps what is above and rounds up what is below, so a
/// target above zero never becomes zero or infinite.
const LARGEST: f64 = i64::MAX as f64;
const SMALLEST: f64 = 1e-9;
/// Beyond this an exponent changes nothing any more, whatever 32 digits stand before it.
const MAX_EXPONENT: i64 = 100;

/// The number that a quantity means.
///
/// # Errors
/// When the text is not a quantity.
pub fn parse(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is not a quantity such as 100, 500m or 10Mi");
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-' || c == '+'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        "Pi" => 1_125_899_906_842_624.0,
        "Ei" => 1_152_921_504_606_846_976.0,
        exponent => {
            // "E6" is an exponent, "E" alone is exa.
            let digits = exponent
                .strip_prefix(['e', 'E'])
                .ok_or_else(wrong)?
                .parse::<i64>()
                .map_err(|_| wrong())?;
            10f64.powi(digits.clamp(-MAX_EXPONENT, MAX_EXPONENT) as i32)
        }
    };
    let value = number * factor;
    if number > 0.0 {
        return Ok(value.clamp(SMALLEST, LARGEST));
    }
    Ok(value)
}

impl FromStr for Quantity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self {
            value: parse(text)?,
            text: text.to_owned(),
        })
    }
}

impl From<f64> for Quantity {
    fn from(value: f64) -> Self {
        Self {
            text: format(value),
            value,
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity such as 100, \"500m\" or \"10Mi\"")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Quantity, E> {
                v.parse().map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Quantity, E> {
                self.visit_str(&v.to_string())
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Quantity, E> {
                self.visit_str(&v.to_string())
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true, "pattern": PATTERN, "maxLength": 32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_apimachinery_reads() {
        for (text, value) in [
            ("100", 100.0),
            ("1.5", 1.5),
            ("500m", 0.5),
            ("10Mi", 10_485_760.0),
            ("2k", 2000.0),
            ("1e3", 1000.0),
            ("3E", 3e18),
            ("1E2", 100.0),
            (".5", 0.5),
        ] {
            assert_eq!(text.parse::<Quantity>().unwrap().get(), value, "{text}");
        }
        for text in ["", "ten", "1Q", "1mm", "m"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    /// What the API server takes as above zero must not divide by zero, nor vanish: found by fuzzing.
    #[test]
    fn what_is_too_large_or_too_small_is_capped_as_apimachinery_does() {
        for text in [
            "1E515",
            "9223372036854775808",
            "99999999999999999999999E",
            "1e9999999999999",
        ] {
            assert_eq!(text.parse::<Quantity>().unwrap().get(), LARGEST, "{text}");
        }
        for text in ["1e-99", "0.0000000001", "0.1n", "1e-9999999999999"] {
            assert_eq!(text.parse::<Quantity>().unwrap().get(), SMALLEST, "{text}");
        }
        for text in ["0", "0.000", "0e999", "0n"] {
            assert_eq!(text.parse::<Quantity>().unwrap().get(), 0.0, "{text}");
        }
    }

    #[test]
    fn an_integer_in_json_is_a_quantity_too() {
        assert_eq!(serde_json::from_str::<Quantity>("7").unwrap().get(), 7.0);
        assert_eq!(
            serde_json::to_string(&serde_json::from_str::<Quantity>("\"7k\"").unwrap()).unwrap(),
            "\"7k\""
        );
    }

    #[test]
    fn prints_thousandths_only_where_needed() {
        assert_eq!(format(600.0), "600");
        assert_eq!(format(0.5), "500m");
        assert_eq!(format(f64::NAN), "unknown");
    }
}
