//! `operator simulate` as its users see it: samples and traces of the repository, the example of its
//! documentation, and what is said about files that cannot be simulated.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests may panic")]

use std::{fs, path::PathBuf};

use clap::Parser;
use ebpf_scaler_operator::{
    args::{Cli, Command},
    simulate,
};

fn path(relative: &str) -> String {
    format!("{}/../{relative}", env!("CARGO_MANIFEST_DIR"))
}

/// A file of this test's own.
fn scratch(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("simulate");
    fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

/// What is printed, or what is wrong.
fn run(args: &[&str]) -> Result<String, String> {
    let args = ["operator", "simulate"].iter().chain(args);
    let cli = Cli::try_parse_from(args).map_err(|e| e.to_string())?;
    let Some(Command::Simulate(args)) = cli.command else {
        panic!("another command");
    };
    let mut output = Vec::new();
    simulate::run(&args, &mut output).map_err(|e| format!("{e:#}"))?;
    Ok(String::from_utf8(output).unwrap())
}

#[test]
fn the_example_of_the_documentation_gives_what_it_says() {
    let page = include_str!("../../docs/simulate.md");
    let mut blocks = page.split("```text\n").skip(1);
    let wanted = blocks.next().unwrap().split("```").next().unwrap();
    let sample = path("config/samples/request-rate.yaml");
    let (json, picture) = (scratch("step.json"), scratch("step.svg"));
    let printed = run(&[
        "--scaler",
        &sample,
        "--trace",
        "family:step?seed=3",
        "--against",
        "hpa,hpa-cpu,kpa",
        "--json",
        json.to_str().unwrap(),
        "--picture",
        picture.to_str().unwrap(),
    ])
    .unwrap();
    assert_eq!(printed, wanted);

    let report: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let deciders = report["outcomes"].as_array().unwrap().iter();
    let deciders: Vec<&str> = deciders.map(|o| o["decider"].as_str().unwrap()).collect();
    assert_eq!(deciders, ["ebpfscaler", "hpa", "hpa-cpu", "kpa"]);
    assert_eq!(
        report["outcomes"][0]["changes"][0]["reason"],
        "BurstAboveTarget"
    );
    let svg = fs::read_to_string(picture).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("hpa-cpu") && svg.contains("minutes"));
}

#[test]
fn every_sample_is_simulated_or_says_what_is_missing() {
    for (sample, wanted) in [
        ("request-rate", Ok("kpa ")),
        ("requests-in-flight", Ok("kpa ")),
        ("observe", Ok("kpa ")),
        (
            "schedules-and-pause",
            Ok("spec.schedules and spec.pause are left out"),
        ),
        ("request-latency", Ok("kpa: left out, it takes one metric")),
        (
            "run-queue-latency",
            Err("spec.metrics[0].type: RunQueueLatency is not simulated"),
        ),
        (
            "network-throughput",
            Err("spec.metrics[0].type: NetworkThroughput is not"),
        ),
        (
            "external",
            Err("spec.metrics[0].type: External is not simulated"),
        ),
        (
            "hpa",
            Err("kind: expected EbpfScaler, found \"HorizontalPodAutoscaler\""),
        ),
    ] {
        let file = path(&format!("config/samples/{sample}.yaml"));
        let got = run(&[
            "--scaler",
            &file,
            "--trace",
            "family:ramp?duration=120&base=50&peak=150",
        ]);
        match (got, wanted) {
            (Ok(got), Ok(wanted)) => assert!(got.contains(wanted), "{sample}: {got}"),
            (Err(got), Err(wanted)) => assert!(got.contains(wanted), "{sample}: {got}"),
            (got, _) => panic!("{sample}: {got:?}"),
        }
    }
}

#[test]
fn the_traces_that_are_kept_are_read_in_part_and_to_scale() {
    let sample = path("config/samples/request-rate.yaml");
    for (trace, from, to, scale, seconds) in [
        ("twitter-day-3", "1h", "1h5m", "5", "300 s"),
        ("nasa-july-1995-day-12", "12h", "13h", "1", "3600 s"),
        ("worldcup98-june-08-to-14", "3d", "3d2m", "1", "120 s"),
    ] {
        let file = path(&format!("operator/simulate/traces/{trace}.csv.gz"));
        let args = [
            "--scaler", &sample, "--trace", &file, "--from", from, "--to", to, "--scale", scale,
        ];
        let printed = run(&args).unwrap();
        assert!(
            printed.starts_with(&format!("{trace}, {seconds}, ")),
            "{printed}"
        );
    }
}

#[test]
fn what_cannot_be_simulated_is_said_with_its_place() {
    let sample = path("config/samples/request-rate.yaml");
    let csv = scratch("wrong.csv");
    fs::write(&csv, "seconds,rate\n0,10\n60,many\n").unwrap();
    let not_gzip = scratch("wrong.csv.gz");
    fs::write(&not_gzip, [0x1f, 0x8b, 1, 2, 3]).unwrap();
    let bounds = scratch("bounds.yaml");
    let yaml = fs::read_to_string(&sample).unwrap();
    fs::write(&bounds, yaml.replace("minReplicas: 2", "minReplicas: 30")).unwrap();
    let step = "family:step?duration=60";
    for (scaler, trace, more, wanted) in [
        (
            sample.as_str(),
            csv.to_str().unwrap(),
            "",
            "line 3, column 2 (rate): expected a number, found \"many\"",
        ),
        (
            &sample,
            not_gzip.to_str().unwrap(),
            "",
            "not gzip, although it begins like it",
        ),
        (&sample, "nowhere.csv", "", "cannot read nowhere.csv"),
        (&sample, "family:steep", "", "no family \"steep\""),
        (&sample, step, "--scale=0", "--scale: 0 is not above zero"),
        (
            &sample,
            step,
            "--from=2m",
            "--from: after the end of the trace, 60 s",
        ),
        (
            &sample,
            step,
            "--workers=0",
            "--workers: 0 is not from 1 to 1000",
        ),
        (
            &sample,
            step,
            "--capacity=NaN",
            "--capacity: NaN is not from 0.001",
        ),
        (&sample, step, "--against=keda", "invalid value 'keda'"),
        (
            bounds.to_str().unwrap(),
            step,
            "",
            "spec.minReplicas: 30 is not from 0 to maxReplicas, 20",
        ),
        ("nowhere.yaml", step, "", "cannot read nowhere.yaml"),
    ] {
        let mut args = vec!["--scaler", scaler, "--trace", trace];
        args.extend(Some(more).filter(|m| !m.is_empty()));
        let error = run(&args).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
    assert!(run(&["--scaler", &sample]).unwrap_err().contains("--trace"));
}

#[test]
fn what_a_scaler_saw_can_be_played_again() {
    let sample = path("config/samples/request-rate.yaml");
    let file = scratch("history.yaml");
    let history = "apiVersion: ebpfscaler.io/v1alpha1\nkind: ScalingHistory\nmetadata: {name: web, namespace: shop}\n\
        decisions: []\nload:\n  metric: requests_per_second\n  start: \"2026-11-24T10:00:00Z\"\n  stepSeconds: 300\n  \
        values: [\"100\", \"\", \"600\", \"150.5\"]\n";
    let simulate = |text: &str| {
        fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap();
        run(&["--scaler", &sample, "--trace", file, "--against", "hpa"])
    };
    let printed = simulate(history).unwrap();
    assert!(printed.starts_with("web, 1200 s, "), "{printed}");
    // 300 s each at 100, 100, 600 and 150.5 requests/s.
    let requests = printed.split(", ").nth(2).and_then(|w| w.split(' ').next());
    let requests: f64 = requests.unwrap().parse().unwrap();
    assert!((requests - 285_150.0).abs() < 3_000.0, "{printed}");
    let others = [
        (
            "requests_per_second",
            "requests_in_flight",
            "load.metric: requests_in_flight",
        ),
        (
            "\"600\"",
            "\"many\"",
            "load.values[2]: \"many\" is no number",
        ),
        ("stepSeconds: 300", "stepSeconds: 0", "load.stepSeconds: 0"),
        (
            "kind: ScalingHistory",
            "kind: Pod # ScalingHistory",
            "expected ScalingHistory",
        ),
    ];
    for (from, to, wrong) in others {
        let error = simulate(&history.replace(from, to)).unwrap_err();
        assert!(error.contains(wrong), "{error}");
    }
}
