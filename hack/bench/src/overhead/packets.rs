//! The programs of requests and network under loads that consist of one kind of packet each, so that what a packet
//! costs can be told from what a request costs.

use std::time::Duration;

use ebpf_scaler_sample::spread::Spread;
use ebpf_scaler_testbed::Wire;
use serde::Serialize;

use super::empty;
use super::programs::{Accounts, Cost, Window, costs, net};
use crate::generators::Wrk;
use crate::interrupt;
use crate::scene::{Scene, Target};
use crate::servers::Server;
use crate::table::{Table, verdict};

/// Nanoseconds of a packet of a body, or of an acknowledgement.
const PACKET: f64 = 150.0;
/// Nanoseconds of a request with up to 512 bytes of headers, in and out.
const REQUEST: f64 = 500.0;
/// Bytes of request heads that are measured.
const HEADS: [usize; 4] = [128, 512, 2048, 8192];
/// Of wrk's own head, up to its last header's value.
const LEAST_HEAD: usize = 60;
/// The trace point of sockets that go.
const DESTROY: &str = "tcp_destroy_sock";
/// Sends 4 MiB that look like requests, the worst that a parser can meet: so long that heads hardly count.
const UPLOAD: &str =
    "wrk.method = 'POST'; wrk.body = string.rep('GET / HTTP/1.1\\r\\n\\r\\n', 233016)";

/// Something that has a budget, or is to be known.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What one of it is.
    pub what: String,
    /// Nanoseconds, net; the median over the rounds.
    pub ns: f64,
    /// Smallest and largest.
    pub spread: [f64; 2],
    /// Nanoseconds at most.
    pub budget: Option<f64>,
}

/// A load and what it gave, round by round.
struct Load {
    name: String,
    rounds: Vec<Accounts>,
    requests: Vec<u64>,
}

/// Measures every load.
pub fn measure(quick: bool) -> anyhow::Result<(Vec<Cost>, Vec<Figure>)> {
    let (rounds, time) = if quick { (2, 1) } else { (5, 3) };
    let time = Duration::from_secs(time);
    let mut scene = Scene::create(Wire::Direct)?;
    let _empty = (
        empty::packets(scene.site.kubepods())?,
        empty::trace_point(DESTROY)?,
    );
    let mut run = |name: &str, server: Server, path: &str, wrk: Wrk<'_>| {
        let wrk = Wrk { time, ..wrk };
        load(&mut scene, name, server, rounds, &|scene, server| {
            wrk.run(&scene.site, &server.url(path)).map(drop)
        })
    };
    let mut heads = Vec::new();
    for bytes in HEADS {
        let headers = [format!(
            "X-Fill: {}",
            "x".repeat(bytes.saturating_sub(LEAST_HEAD))
        )];
        let wrk = Wrk {
            headers: &headers,
            ..Wrk::default()
        };
        let name = format!("keep-alive, {bytes} bytes of head");
        heads.push(run(&name, Server::Nginx, "/hello", wrk)?);
    }
    let few = Wrk {
        connections: 4,
        ..Wrk::default()
    };
    let download = run("download of 4 MiB", Server::Nginx, "/big", few)?;
    let script = Wrk {
        script: UPLOAD,
        ..few
    };
    let upload = run("upload of 4 MiB", Server::Sample(0), "/sink", script)?;
    let close = ["Connection: close".to_owned()];
    let close = Wrk {
        headers: &close,
        ..Wrk::default()
    };
    let connections = run(
        "a connection for each request",
        Server::Nginx,
        "/hello",
        close,
    )?;

    let mut figures = Vec::new();
    for (head, bytes) in heads.iter().zip(HEADS) {
        let budget = (bytes <= 512).then_some(REQUEST);
        let what = format!("request with {bytes} bytes of head, in and out");
        figures.extend(head.request().map(|ns| figure(&what, &ns, budget)));
    }
    for (what, load, program) in [
        ("acknowledgement in (download)", &download, "ingress"),
        ("packet of a body out (download)", &download, "egress"),
        ("packet of a body in (upload)", &upload, "ingress"),
        ("acknowledgement out (upload)", &upload, "egress"),
    ] {
        let ns = load.net(program);
        figures.extend(ns.map(|ns| figure(what, &ns, Some(PACKET))));
    }
    // The kernel cuts names.
    let destroyed = connections.net("tcp_destroy_soc");
    figures.extend(destroyed.map(|ns| figure("end of a connection", &ns, None)));
    let all = heads.iter().chain([&download, &upload, &connections]);
    let costs = all
        .flat_map(|load| costs(&load.name, &load.rounds))
        .collect();
    Ok((costs, figures))
}

fn load(
    scene: &mut Scene,
    name: &str,
    server: Server,
    rounds: usize,
    generate: &dyn Fn(&Scene, &crate::servers::Listening) -> anyhow::Result<()>,
) -> anyhow::Result<Load> {
    let target: Target = scene.target()?;
    let server = server.start(&scene.site, &target.pod)?;
    let mut load = Load {
        name: name.to_owned(),
        rounds: Vec::new(),
        requests: Vec::new(),
    };
    for _ in 0..rounds {
        interrupt::check()?;
        let before = scene.counters(&target).requests;
        let window = Window::open(&[std::process::id()])?;
        generate(scene, &server)?;
        load.rounds.push(window.close()?);
        load.requests
            .push(scene.counters(&target).requests - before);
    }
    Ok(load)
}

impl Load {
    /// Nanoseconds for each event, net, round by round; none if some round has none.
    fn net(&self, program: &str) -> Option<Vec<f64>> {
        self.rounds
            .iter()
            .map(|round| net(round, program))
            .collect()
    }

    /// Nanoseconds for each request, of all packets together.
    fn request(&self) -> Option<Vec<f64>> {
        let rounds = self.rounds.iter().zip(&self.requests);
        rounds
            .map(|(round, &requests)| {
                let of = |program| Some(net(round, program)? * round.get(program)?.count as f64);
                Some((of("ingress")? + of("egress")?) / requests.max(1) as f64)
            })
            .collect()
    }
}

fn figure(what: &str, rounds: &[f64], budget: Option<f64>) -> Figure {
    let spread = Spread::of(rounds);
    Figure {
        what: what.to_owned(),
        ns: spread.map_or(f64::NAN, |spread| spread.median),
        spread: spread.map_or([f64::NAN; 2], |spread| [spread.least, spread.most]),
        budget,
    }
}

/// For people.
pub fn table(figures: &[Figure]) -> Table {
    let headings = ["what", "ns net", "least to most", "budget", ""];
    let mut table = Table::new("Requests and network, median nanoseconds", &headings);
    for figure in figures {
        table.row([
            figure.what.clone(),
            format!("{:.0}", figure.ns),
            format!("{:.0} to {:.0}", figure.spread[0], figure.spread[1]),
            figure
                .budget
                .map_or("-".to_owned(), |budget| format!("{budget:.0}")),
            figure
                .budget
                .map_or("-".to_owned(), |budget| verdict(figure.ns <= budget)),
        ]);
    }
    let heads: Vec<f64> = figures
        .iter()
        .take(HEADS.len())
        .map(|figure| figure.ns)
        .collect();
    if let [_, half, _, most] = heads[..] {
        let slope = (most - half) / (HEADS[3] - HEADS[1]) as f64;
        table.note(format!(
            "Beyond 512 bytes a byte of head costs {slope:.2} ns."
        ));
    }
    table
}
