//! Behind whom a pod's threads waited most, as the wire says it: bounded, and of the last few seconds only. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use ebpf_scaler_proto::Preemptor;

/// How often they are ranked anew.
pub const PERIOD: Duration = Duration::from_secs(5);
/// How many are named.
const NAMED: usize = 3;
/// Less than this many threads waiting on average is not worth a name.
const NEGLIGIBLE: f64 = 0.001;

/// Ranks what a pod's slots say of `period`: pod UIDs (none: not a pod) with nanoseconds of waiting behind each.
pub fn rank(
    waited: impl IntoIterator<Item = (Option<String>, u64)>,
    period: Duration,
) -> Vec<Preemptor> {
    let mut by_pod = BTreeMap::<String, u64>::new();
    for (uid, nanos) in waited {
        *by_pod.entry(uid.unwrap_or_default()).or_default() += nanos;
    }
    let nanos = period.as_nanos().max(1) as f64;
    let mut ranked: Vec<Preemptor> = by_pod
        .into_iter()
        .map(|(pod_uid, waited)| Preemptor {
            pod_uid,
            waiting_threads: waited as f64 / nanos,
        })
        .filter(|p| p.waiting_threads >= NEGLIGIBLE)
        .collect();
    ranked.sort_by(|a, b| b.waiting_threads.total_cmp(&a.waiting_threads));
    ranked.truncate(NAMED);
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_that_were_waited_for_most_are_named() {
        let second = 1_000_000_000;
        let of = |uid: &str, nanos| (Some(uid.to_owned()), nanos);
        let waited = [
            of("a", second),
            (None, 3 * second),
            of("b", second / 2),
            of("a", second),
            of("c", second / 4),
            of("d", 1000),
        ];
        let ranked = rank(waited, Duration::from_secs(2));
        let ranked: Vec<(&str, f64)> = ranked
            .iter()
            .map(|p| (p.pod_uid.as_str(), p.waiting_threads))
            .collect();
        assert_eq!(ranked, [("", 1.5), ("a", 1.0), ("b", 0.25)]);
        assert_eq!(rank([of("d", 1000)], Duration::from_secs(1)), []);
    }
}
