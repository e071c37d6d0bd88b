//! Numbers as Kubernetes quantities, in whole thousandths: what an HPA reads. Never parses one.

/// A value as a quantity: `83`, or `1500m` where it has a fraction. Rounded to the nearest thousandth, and
/// limited to what fits an int64 of thousandths; not a number is `None`.
pub fn quantity(value: f64) -> Option<String> {
    if !value.is_finite() {
        return None;
    }
    // As a float, i64::MAX rounds up; one step below fits.
    let milli = (value * 1000.0).round().clamp(-9.2e18, 9.2e18) as i64;
    Some(if milli % 1000 == 0 {
        (milli / 1000).to_string()
    } else {
        format!("{milli}m")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube_quantity::ParsedQuantity;
    use proptest::prelude::*;

    #[test]
    fn whole_numbers_are_plain_and_fractions_in_thousandths() {
        for (value, text) in [
            (0.0, "0"),
            (83.0, "83"),
            (1.5, "1500m"),
            (0.0004, "0"),
            (0.0006, "1m"),
            (-0.25, "-250m"),
            (1e6, "1000000"),
            (1e30, "9200000000000000"),
        ] {
            assert_eq!(quantity(value).unwrap(), text, "{value}");
        }
        assert_eq!(quantity(f64::NAN), None);
        assert_eq!(quantity(f64::INFINITY), None);
    }

    proptest! {
        #[test]
        fn others_read_what_we_mean(value in -1e12f64..1e12) {
            let text = quantity(value).unwrap();
            let parsed = ParsedQuantity::try_from(text.as_str()).unwrap();
            let read = parsed.to_bytes_f64().unwrap();
            prop_assert!((read - value).abs() <= 0.0005 + value.abs() * 1e-12, "{} is read as {}", text, read);
        }
    }
}
