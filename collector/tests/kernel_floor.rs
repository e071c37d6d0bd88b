//! What the kernel must be able to do: on one that is too old the agent says so. Runs on every kernel, also below
//! the floor; needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

use std::collections::BTreeSet;
use std::fs;

use ebpf_scaler_collector::agent::probes::{FLOOR, Family, Options, Probes, RUN_QUEUE_FLOOR};
use ebpf_scaler_testbed::cgroup2;

/// The running kernel's version, to two places.
fn release() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Our programs and how many instructions the verifier looked at, of the million that it allows.
fn verified() -> Vec<(String, u32)> {
    let ours = aya::programs::loaded_programs().flatten().map(|program| {
        (
            program.name_as_str().unwrap_or_default().to_owned(),
            program.verified_instruction_count().unwrap_or(0),
        )
    });
    let large = |name: &str| {
        name.starts_with("tls_") || ["egress", "ingress", "sched_switch"].contains(&name)
    };
    ours.filter(|(name, _)| large(name)).collect()
}

#[test]
fn the_floor_is_where_the_documents_say_and_below_it_the_refusal_names_it() {
    let root = cgroup2()
        .unwrap()
        .join(format!("ebst-floor-{}", std::process::id()));
    fs::create_dir(&root).unwrap();
    let loaded = Probes::load(&Options {
        cgroup: root.clone(),
        excluded_ports: vec![],
        max_pods: 4,
        tls: true,
    });
    let running = release();
    if running < FLOOR {
        let said = loaded.expect_err("too old, but loaded").to_string();
        eprintln!("{said}");
        let floor = format!("{}.{}", FLOOR.0, FLOOR.1);
        assert!(
            said.contains("this kernel is Linux ") && said.contains(&floor),
            "{said}"
        );
        // Not a hint at capabilities, which would send its reader the wrong way.
        assert!(!said.contains("CAP_"), "{said}");
        assert!(said.len() < 1500, "{said}");
    } else {
        let mut probes = loaded.unwrap_or_else(|e| panic!("{e}"));
        let wanted = BTreeSet::from([Family::RunQueue]);
        if running < RUN_QUEUE_FLOOR {
            assert_eq!(probes.degraded().len(), 1, "{:?}", probes.degraded());
            let failed = probes.set_wanted(&wanted);
            assert_eq!(failed.len(), 1, "{failed:?}");
        } else {
            assert_eq!(probes.degraded(), []);
            assert_eq!(probes.set_wanted(&wanted), []);
        }
        let verified = verified();
        // All of them, also those whose refusal would be told only where they are needed.
        let is_there = |wanted: &str| verified.iter().any(|(name, _)| name == wanted);
        for name in ["tls_read", "tls_write", "tls_go_read", "tls_go_write"] {
            assert!(is_there(name), "{name}: {verified:?}");
        }
        for (name, instructions) in verified {
            eprintln!("{name}: the verifier looked at {instructions} instructions");
        }
    }
    fs::remove_dir(&root).unwrap();
}
