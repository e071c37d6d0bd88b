//! What counting inside TLS costs: our programs' own time, by the kernel's account, and what a server loses, most of which
//! is the traps into the kernel. `--long` takes the figures of docs/tls.md. Needs root and the BPF object.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that can not go on fails"
)]

mod kernel;

use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use aya::sys::{Stats, enable_stats};
use ebpf_scaler_collector::agent::tls::libraries_of;
use kernel::tls::{Process, Scene, nginx_config, wrk_by};
use kernel::{SERVER, go, long};

const CONNECTIONS: u32 = 16;
const PORT: u16 = 443;
/// The kernel's account is of all our programs: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs and nanoseconds of the programs inside TLS.
fn account() -> (u64, u64) {
    let ours = aya::programs::loaded_programs().flatten();
    let ours = ours.filter(|p| p.name_as_str().is_some_and(|name| name.starts_with("tls_")));
    ours.fold((0, 0), |sum, program| {
        let nanos = program.run_time().as_nanos() as u64;
        (sum.0 + program.run_count(), sum.1 + nanos)
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
fn what_nginx_and_a_request_pay() {
    let mut scene = Scene::new();
    let config = nginx_config(&scene.files, PORT);
    let mut command = scene.command("nginx", &["-c", config.to_str().unwrap()]);
    let server = scene.serve_unprobed(command.stderr(Stdio::null()), PORT);
    // A read and a write, each begun and ended, and the reads that find nothing.
    assert!(pay(&mut scene, &server, "nginx", "hello") >= 4.0);
}

#[test]
fn what_a_go_server_and_a_request_pay() {
    let mut scene = Scene::new();
    let program = go::build(&scene, "server", &[]);
    let server = go::start(&scene, &program, PORT);
    // A read that is begun and ended, and a write that is begun.
    assert!(pay(&mut scene, &server, "Go", "") >= 3.0);
}

/// Tells what the server loses by being probed; how many of our programs run for a request.
fn pay(scene: &mut Scene, server: &Process, name: &str, path: &str) -> f64 {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (pairs, seconds) = if long() { (9, 3) } else { (1, 1) };
    let url = format!("https://{SERVER}:{PORT}/{path}");
    // A client is on another machine, or pays itself: here it gets a library of its own.
    let own = scene.files.join("client");
    std::fs::create_dir(&own).unwrap();
    for library in libraries_of(server.id()).unwrap() {
        let name = library.path.rsplit('/').next().unwrap();
        std::fs::copy(&library.path, own.join(name)).unwrap();
    }
    let run = || {
        let mut client = Command::new("wrk");
        client.env("LD_LIBRARY_PATH", &own);
        wrk_by(client, CONNECTIONS, seconds, "A: b", &url) as f64
    };
    let mut losses = Vec::new();
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        let plain = run();
        scene.probe(server.id());
        let probed = run();
        scene.world.probes.set_wanted(&[].into());
        losses.push(1.0 - probed / plain);
        with.push(probed / f64::from(seconds));
        without.push(plain / f64::from(seconds));
    }
    scene.probe(server.id());
    let _stats = enable_stats(Stats::RunTime).unwrap();
    let before = account();
    let requests = run();
    let after = account();
    let (runs, nanos) = (after.0 - before.0, after.1 - before.1);
    let of_request = nanos as f64 / requests;
    let of_each = runs as f64 / requests;
    eprintln!(
        "{name}, {CONNECTIONS} connections: {:.0} requests/s without, {:.0} with, {:.1} % less; of a request {of_each:.1} runs, {of_request:.0} ns",
        median(without),
        median(with),
        median(losses) * 100.0,
    );
    // An emulated machine takes some ten times as long as any other.
    assert!(of_request < 200_000.0, "{of_request} ns");
    of_each
}
