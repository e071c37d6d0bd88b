//! Text that others write: cgroup paths, label selectors, quantities, durations. Files of crates that are too large
//! to be instrumented are included as they are.

use std::time::Duration;

use ebpf_scaler_measure::selector::Selector;

#[path = "../../../crds/src/duration.rs"]
#[allow(dead_code, reason = "only what reads text is called")]
mod duration;
#[path = "../../../collector/src/agent/cgroup/path.rs"]
#[allow(dead_code, reason = "only what reads text is called")]
mod path;
#[path = "../../../crds/src/quantity.rs"]
#[allow(dead_code, reason = "only what reads text is called")]
mod quantity;

/// A pod's directory is a part of the path, and reads as the same pod without a container.
pub fn cgroup_path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    path::is_kubepods(text);
    path::pod_uid(text);
    if let Some(found) = path::parse(text) {
        assert!(text.starts_with(&found.pod_dir), "{text:?}: {found:?}");
        let rest = &text[found.pod_dir.len()..];
        assert!(
            rest.is_empty() || rest.starts_with('/'),
            "{text:?}: {found:?}"
        );
        let own = path::parse(&found.pod_dir).expect("the pod's own directory is a pod's");
        assert_eq!((own.uid, own.container), (found.uid, None), "{text:?}");
    }
}

/// What is read and printed reads as the same, and selects the same.
pub fn selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(selector) = Selector::parse(text) else {
        return;
    };
    let printed = selector.to_string();
    assert_eq!(
        Selector::parse(&printed).as_ref(),
        Ok(&selector),
        "{text:?} printed {printed:?}"
    );
    let labels = |key: &str| (key.len() % 2 == 0).then_some("7");
    let again = Selector::parse(&printed).map(|s| s.matches(labels));
    assert_eq!(again, Ok(selector.matches(labels)), "{text:?}");
}

/// What the API server takes is read: as a number that can be divided by, and compared.
pub fn quantity(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let read = text.parse::<quantity::Quantity>();
    let Some((number, exponent)) = api_quantity(text) else {
        return;
    };
    let value = read.unwrap_or_else(|e| panic!("{text:?}: {e}")).get();
    assert!(value.is_finite() && value >= 0.0, "{text:?}: {value}");
    let zero = number.bytes().all(|b| b == b'0' || b == b'.');
    assert_eq!(value == 0.0, zero, "{text:?}: {value}");
    let again = quantity::format(value);
    assert!(
        quantity::parse(&again).is_ok(),
        "{text:?} printed {again:?}"
    );
    if exponent.is_empty() {
        // Without a suffix it is the number that everybody reads, up to the largest there is.
        let plain: f64 = number.parse().unwrap_or(f64::NAN);
        assert!(
            value == plain || plain > 9e18 || plain < 1e-9,
            "{text:?}: {value}"
        );
    }
}

/// Number and suffix of what matches the schema's pattern (`quantity::PATTERN`) and length, and has an exponent that
/// apimachinery can hold.
fn api_quantity(text: &str) -> Option<(&str, &str)> {
    if text.len() > 32 {
        return None;
    }
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    if digits == 0 || number.len() > digits + 1 {
        return None;
    }
    let known = [
        "", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei",
    ];
    let exponent = || {
        let text = suffix.strip_prefix(['e', 'E'])?;
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        let all = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        (all && text.parse::<i64>().is_ok()).then_some(())
    };
    if !known.contains(&suffix) {
        exponent()?;
    }
    Some((number, suffix))
}

/// What the API server takes is read to the same length of time.
pub fn duration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let read = text.parse::<duration::HumanDuration>();
    if let Some(expected) = api_duration(text) {
        let value = read.unwrap_or_else(|e| panic!("{text:?}: {e}")).get();
        assert_eq!(value, expected, "{text:?}");
        let printed = duration::HumanDuration::from(value).to_string();
        let again = printed.parse::<duration::HumanDuration>();
        assert_eq!(
            again.map(|d| d.get()),
            Ok(value),
            "{text:?} printed {printed:?}"
        );
    }
}

/// What matches the schema's pattern (`duration::PATTERN`) and is not beyond CEL's 292 years.
fn api_duration(mut text: &str) -> Option<Duration> {
    let mut sum = 0u64;
    if text.is_empty() {
        return None;
    }
    while !text.is_empty() {
        let (number, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let unit = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let nanos = match &rest[..unit] {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" => 1_000,
            _ => return None,
        };
        sum = number
            .parse::<u64>()
            .ok()?
            .checked_mul(nanos)?
            .checked_add(sum)?;
        text = &rest[unit..];
    }
    (sum <= i64::MAX as u64).then(|| Duration::from_nanos(sum))
}
