//! The workloads: which client loads which server, over which wire. Each has a pod of its own.

use std::time::Duration;

use ebpf_scaler_testbed::{Impairment, Relay, Wire};

use super::outcome::{Outcome, Protocol};
use super::raw::Clients;
use crate::generators::{self, Generated, Wrk};
use crate::grpc;
use crate::interrupt;
use crate::scene::{Scene, Target, since};
use crate::servers::{Listening, Server};

/// What is still on its way has arrived by then.
const SETTLE: Duration = Duration::from_secs(5);
/// Connections of clients that keep many open.
const CONNECTIONS: u64 = 16;
/// Requests that the pipelining client sends at once.
const PIPELINED: u64 = 16;
const WHOLE: usize = usize::MAX;
/// Bodies of 64 KiB that look like requests.
const UPLOAD: &str =
    "wrk.method = 'POST'; wrk.body = string.rep('GET / HTTP/1.1\\r\\n\\r\\n', 3641)";

/// How much of each.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// For generators that run for a time.
    pub time: Duration,
    /// For generators that send a number.
    pub requests: u64,
    /// For clients that send one after the other.
    pub rounds: u64,
    /// Pods that live shortly.
    pub pods: u32,
}

impl Scale {
    /// Short ones try the bench itself.
    pub fn new(quick: bool) -> Scale {
        Scale {
            time: Duration::from_secs(if quick { 1 } else { 8 }),
            requests: if quick { 2_000 } else { 100_000 },
            rounds: if quick { 20 } else { 500 },
            pods: if quick { 30 } else { 200 },
        }
    }
}

/// What a client is given.
struct Call<'a> {
    scene: &'a Scene,
    server: &'a Listening,
    scale: &'a Scale,
}

type Client = fn(&Call<'_>) -> anyhow::Result<Generated>;
type Preparation = fn(&Call<'_>) -> anyhow::Result<()>;

/// One workload.
pub struct Workload {
    /// For the table.
    pub name: &'static str,
    /// Between client and pod.
    pub wire: Wire,
    protocol: Protocol,
    server: Server,
    kind: Kind,
}

enum Kind {
    /// The client begins when the programs are there.
    Plain(Client),
    /// Something is done to the server first, which is not counted.
    Prepared(Preparation, Client),
    /// The wire is impaired meanwhile.
    Impaired(Impairment, Client),
    /// The connections are there first, and have been used, when new programs come.
    OlderThanPrograms,
}

const fn plain(name: &'static str, protocol: Protocol, server: Server, client: Client) -> Workload {
    Workload {
        name,
        wire: Wire::Direct,
        protocol,
        server,
        kind: Kind::Plain(client),
    }
}

const fn prepared(
    name: &'static str,
    protocol: Protocol,
    server: Server,
    preparation: Preparation,
    client: Client,
) -> Workload {
    Workload {
        name,
        wire: Wire::Direct,
        protocol,
        server,
        kind: Kind::Prepared(preparation, client),
    }
}

const fn impaired(
    name: &'static str,
    impairment: Impairment,
    server: Server,
    client: Client,
) -> Workload {
    Workload {
        name,
        wire: Wire::Relayed,
        protocol: Protocol::Http1,
        server,
        kind: Kind::Impaired(impairment, client),
    }
}

const LOSS: Impairment = Impairment {
    loss: 0.01,
    reorder: 0.0,
};
const REORDERING: Impairment = Impairment {
    loss: 0.0,
    reorder: 0.02,
};

/// All of them but the pods that live shortly.
pub static WORKLOADS: &[Workload] = &[
    plain(
        "wrk keep-alive, nginx",
        Protocol::Http1,
        Server::Nginx,
        |c| wrk(c).run(&c.scene.site, &c.server.url("/hello")),
    ),
    plain(
        "wrk new connections, nginx",
        Protocol::Http1,
        Server::Nginx,
        |c| {
            let headers = &["Connection: close".to_owned()];
            Wrk { headers, ..wrk(c) }.run(&c.scene.site, &c.server.url("/hello"))
        },
    ),
    plain(
        "wrk pipelined, nginx",
        Protocol::Http1,
        Server::Nginx,
        |c| {
            let script = format!(
                "init = function() local all = {{}}; for i = 1, {PIPELINED} do all[i] = wrk.format() end; \
             batch = table.concat(all) end; request = function() return batch end"
            );
            let (script, pipelined) = (script.as_str(), PIPELINED);
            Wrk {
                script,
                pipelined,
                ..wrk(c)
            }
            .run(&c.scene.site, &c.server.url("/hello"))
        },
    ),
    plain(
        "wrk 4 MiB by sendfile, nginx",
        Protocol::Http1,
        Server::Nginx,
        |c| {
            let connections = 4;
            Wrk {
                connections,
                ..wrk(c)
            }
            .run(&c.scene.site, &c.server.url("/big"))
        },
    ),
    plain("hey, nginx", Protocol::Http1, Server::Nginx, |c| {
        generators::hey(
            &c.scene.site,
            &c.server.url("/small"),
            c.scale.requests,
            CONNECTIONS,
        )
    }),
    plain("wrk, Node", Protocol::Http1, Server::Node, hello),
    plain("wrk, Go net/http", Protocol::Http1, Server::Go, hello),
    plain(
        "wrk, Python http.server",
        Protocol::Http1,
        Server::Python,
        hello,
    ),
    plain(
        "wrk, Python asyncio",
        Protocol::Http1,
        Server::Asyncio,
        hello,
    ),
    plain(
        "wrk POST 64 KiB, hyper",
        Protocol::Http1,
        Server::Sample(0),
        |c| {
            Wrk {
                script: UPLOAD,
                ..wrk(c)
            }
            .run(&c.scene.site, &c.server.url("/sink"))
        },
    ),
    plain(
        "segments of 1 byte, nginx",
        Protocol::Http1,
        Server::Nginx,
        |c| Clients::connect(&c.server.url("/hello"), 4)?.ask(c.scale.rounds, 1),
    ),
    Workload {
        name: "connections older than the programs, nginx",
        wire: Wire::Direct,
        protocol: Protocol::Http1,
        server: Server::Nginx,
        kind: Kind::OlderThanPrograms,
    },
    plain(
        "h2load, 1 stream, nghttpd",
        Protocol::Http2,
        Server::Nghttpd,
        |c| h2load(c, 1),
    ),
    plain(
        "h2load, 100 streams, nghttpd",
        Protocol::Http2,
        Server::Nghttpd,
        |c| h2load(c, 100),
    ),
    plain("gRPC unary, tonic", Protocol::Grpc, Server::Grpc, |c| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(grpc::call(c.server.url(""), c.scale.requests / 5, 4))
    }),
    plain("redis-benchmark", Protocol::Redis, Server::Redis, |c| {
        generators::redis(&c.scene.site, c.server.port, c.scale.requests, 1)
    }),
    plain(
        "redis-benchmark-pipelined",
        Protocol::Redis,
        Server::Redis,
        |c| generators::redis(&c.scene.site, c.server.port, c.scale.requests, PIPELINED),
    ),
    prepared(
        "pgbench",
        Protocol::Postgresql,
        Server::Postgres,
        |c| generators::pgbench_tables(&c.scene.site, c.server.port),
        |c| generators::pgbench(&c.scene.site, c.server.port, c.scale.time, "simple"),
    ),
    prepared(
        "pgbench-prepared",
        Protocol::Postgresql,
        Server::Postgres,
        |c| generators::pgbench_tables(&c.scene.site, c.server.port),
        |c| generators::pgbench(&c.scene.site, c.server.port, c.scale.time, "prepared"),
    ),
    impaired("wrk at 1 % loss, nginx", LOSS, Server::Nginx, hello),
    impaired(
        "wrk POST 64 KiB at 1 % loss, hyper",
        LOSS,
        Server::Sample(0),
        |c| {
            Wrk {
                script: UPLOAD,
                ..wrk(c)
            }
            .run(&c.scene.site, &c.server.url("/sink"))
        },
    ),
    // nginx refuses the method before it has read the body: answers overtake requests.
    impaired(
        "wrk POST 64 KiB, refused early, at 1 % loss, nginx",
        LOSS,
        Server::Nginx,
        |c| {
            Wrk {
                script: UPLOAD,
                ..wrk(c)
            }
            .run(&c.scene.site, &c.server.url("/small"))
        },
    ),
    impaired(
        "wrk at 2 % reordering, nginx",
        REORDERING,
        Server::Nginx,
        hello,
    ),
    impaired(
        "wrk 4 MiB at 2 % reordering, nginx",
        REORDERING,
        Server::Nginx,
        |c| {
            let connections = 2;
            Wrk {
                connections,
                ..wrk(c)
            }
            .run(&c.scene.site, &c.server.url("/big"))
        },
    ),
];

fn wrk<'a>(call: &Call<'_>) -> Wrk<'a> {
    Wrk {
        connections: CONNECTIONS,
        time: call.scale.time,
        ..Wrk::default()
    }
}

fn hello(call: &Call<'_>) -> anyhow::Result<Generated> {
    wrk(call).run(&call.scene.site, &call.server.url("/hello"))
}

fn h2load(call: &Call<'_>, streams: u64) -> anyhow::Result<Generated> {
    let url = call.server.url("/hello");
    generators::h2load(&call.scene.site, &url, call.scale.requests, 4, streams)
}

impl Workload {
    /// Runs it on a scene of its wire.
    pub fn run(&self, scene: &mut Scene, scale: &Scale) -> anyhow::Result<Outcome> {
        match &self.kind {
            Kind::Plain(client) | Kind::Prepared(_, client) => {
                let target = scene.target()?;
                let server = self.server.start(&scene.site, &target.pod)?;
                if let Kind::Prepared(prepare, _) = &self.kind {
                    prepare(&Call {
                        scene,
                        server: &server,
                        scale,
                    })?;
                    settled(scene, &target)?;
                }
                self.measure(scene, &target, |scene| {
                    client(&Call {
                        scene,
                        server: &server,
                        scale,
                    })
                })
            }
            Kind::Impaired(impairment, client) => {
                let relay = Relay::start(scene.site.namespaces(), *impairment)?;
                let target = scene.target()?;
                let server = self.server.start(&scene.site, &target.pod)?;
                let mut outcome = self.measure(scene, &target, |scene| {
                    client(&Call {
                        scene,
                        server: &server,
                        scale,
                    })
                })?;
                let passed = relay.passed();
                outcome.note = Some(format!(
                    "of {} segments {} were lost and {} overtaken on the wire",
                    passed.segments, passed.lost, passed.reordered
                ));
                Ok(outcome)
            }
            Kind::OlderThanPrograms => {
                let pod = scene.site.pod()?;
                // Before the server, so that it goes after it.
                let target;
                let server = self.server.start(&scene.site, &pod)?;
                let mut clients = Clients::connect(&server.url("/hello"), CONNECTIONS as usize)?;
                clients.ask(3, WHOLE)?;
                scene.reload()?;
                target = scene.adopt(pod)?;
                self.measure(scene, &target, |_| clients.ask(scale.rounds, WHOLE))
            }
        }
    }

    fn measure(
        &self,
        scene: &Scene,
        target: &Target,
        generate: impl FnOnce(&Scene) -> anyhow::Result<Generated>,
    ) -> anyhow::Result<Outcome> {
        let (before, statistics) = (scene.counters(target), scene.statistics());
        let generated = generate(scene)?;
        let after = settled(scene, target)?;
        let counted = after.requests - before.requests;
        let mut outcome = Outcome::new(self.name, self.protocol, generated, counted);
        outcome.statistics = since(&statistics, &scene.statistics());
        outcome.aborted = after.requests_aborted - before.requests_aborted;
        outcome.bytes = after.receive_bytes + after.transmit_bytes
            - before.receive_bytes
            - before.transmit_bytes;
        anyhow::ensure!(outcome.bytes > 0, "no packet of the pod was seen");
        Ok(outcome)
    }
}

/// The counters, once nothing is on its way and they do not change.
fn settled(
    scene: &Scene,
    target: &Target,
) -> anyhow::Result<ebpf_scaler_collector::agent::probes::Counters> {
    let mut last = scene.counters(target);
    for _ in 0..SETTLE.as_millis() / 100 {
        interrupt::pause(Duration::from_millis(100))?;
        let now = scene.counters(target);
        let still = now.receive_packets == last.receive_packets
            && now.transmit_packets == last.transmit_packets;
        last = now;
        if still && last.requests_in_flight == 0 {
            break;
        }
    }
    Ok(last)
}
