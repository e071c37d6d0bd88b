//! What we hold a learned capacity to: it keeps the promise where bounded steps do not, for not many more pods than a
//! request rate that somebody set who knows what a pod takes. docs/decisions.md has all loads, and what is not reached.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use ebpf_scaler_simulate::{
    Kind,
    family::{Family, Synthetic},
    run,
};
use support::by_latency;

#[test]
fn what_a_pod_takes_is_learned_within_minutes_and_then_followed() {
    for (family, pods) in [
        (Family::Step, 1.35),
        (Family::Flash, 1.35),
        (Family::Deploy, 1.2),
    ] {
        let (mut bad, mut spent) = ([0; 3], [0.0; 3]);
        let mut requests = 0;
        for seed in 2001..2003 {
            let trace = Synthetic::new(family, seed).trace();
            let kinds = [Kind::EbpfScaler, Kind::RequestRate, Kind::BoundedSteps];
            for (i, kind) in kinds.into_iter().enumerate() {
                let outcome = run(&by_latency(), &trace, kind, seed).unwrap();
                bad[i] += outcome.late + outcome.dropped;
                spent[i] += outcome.pod_seconds;
                requests += if i == 0 { outcome.requests } else { 0 };
            }
        }
        println!("{family:?}: of {requests} {bad:?} bad, pod-seconds {spent:.0?}");
        let [learned, _, steps] = bad.map(|b| b as f64);
        assert!(learned <= 0.01 * requests as f64, "{family:?}: the promise");
        assert!(learned <= 0.5 * steps, "{family:?}: beside bounded steps");
        assert!(spent[0] <= pods * spent[1], "{family:?}: {spent:?}");
    }
}
