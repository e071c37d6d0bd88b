//! A duration as people write it ("30s", "1m30s", "250ms"), with the schema pattern beside it.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What the API server accepts: whole numbers with units. CEL's `duration()` and humantime both
/// read every such string, and to the same value.
pub const PATTERN: &str = "^([0-9]+(h|m|s|ms|us))+$";

/// A duration that keeps the text it was written as, so that a round trip changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HumanDuration {
    text: String,
    value: Duration,
}

impl HumanDuration {
    /// The duration.
    #[must_use]
    pub fn get(&self) -> Duration {
        self.value
    }
}

impl From<Duration> for HumanDuration {
    fn from(value: Duration) -> Self {
        let text = humantime::format_duration(value)
            .to_string()
            .replace(' ', "");
        Self { text, value }
    }
}

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let value = humantime::parse_duration(text)
            .map_err(|e| format!("{text:?} is not a duration such as 30s or 1m30s: {e}"))?;
        Ok(Self {
            text: text.to_owned(),
            value,
        })
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl JsonSchema for HumanDuration {
    fn schema_name() -> Cow<'static, str> {
        "HumanDuration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": PATTERN, "maxLength": 32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_its_text_and_knows_its_value() {
        let d: HumanDuration = serde_json::from_str("\"1m30s\"").unwrap();
        assert_eq!(d.get(), Duration::from_secs(90));
        assert_eq!(serde_json::to_string(&d).unwrap(), "\"1m30s\"");
    }

    #[test]
    fn what_is_made_from_a_duration_fits_the_pattern() {
        assert_eq!(
            HumanDuration::from(Duration::from_millis(90_250)).to_string(),
            "1m30s250ms"
        );
    }

    #[test]
    fn nonsense_names_itself() {
        let e = serde_json::from_str::<HumanDuration>("\"soon\"").unwrap_err();
        assert!(e.to_string().contains("\"soon\""), "{e}");
    }
}
