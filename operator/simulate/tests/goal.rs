//! What we hold ourselves to beside the HPA and Knative's autoscaler, on loads that move quickly: far fewer
//! violations for not many more pods than the HPA. docs/decisions.md has all loads, and what is not reached.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use ebpf_scaler_simulate::{
    Kind,
    compare::{Case, Row},
    family::{Family, Synthetic},
};
use support::by_rate;

#[test]
fn a_load_that_moves_quickly_is_followed_better_than_the_peers_follow_it() {
    for (family, share, pods) in [
        (Family::Step, 0.5, 1.1),
        (Family::Flash, 0.3, 1.1),
        (Family::Spikes, 0.5, 1.25),
    ] {
        let runs = (2001..2004).map(|seed| {
            let synthetic = Synthetic {
                duration: 1200,
                ..Synthetic::new(family, seed)
            };
            (by_rate(), synthetic.trace(), seed)
        });
        let case = Case {
            name: family.as_str().into(),
            runs: runs.collect(),
        };
        let row = Row::run(&case, &[Kind::EbpfScaler, Kind::Hpa, Kind::Kpa]);
        let [ours, hpa, kpa] = row.sums.as_slice() else {
            unreachable!("three deciders");
        };
        let bad = |sum: &ebpf_scaler_simulate::compare::Sum| sum.bad as f64;
        println!("{family:?}: {row:?}");
        assert!(bad(ours) <= share * bad(hpa), "{family:?} beside the HPA");
        assert!(bad(ours) <= bad(kpa), "{family:?} beside KPA");
        assert!(ours.pod_seconds <= pods * hpa.pod_seconds, "{family:?}");
        assert!(ours.changes < kpa.changes, "{family:?}");
    }
}
