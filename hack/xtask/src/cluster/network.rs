//! The addresses of a cluster and the wiring of its nodes: a bridge in a namespace of its own, with
//! one cable to the host and one to each node. The host gets one interface and its routes, nothing else.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

use super::{
    journal::{Entry, Journal},
    process,
    sandbox::Sandbox,
};

/// Most nodes that the address plan has room for.
pub const MAX_NODES: u8 = 16;

/// The second octets among which clusters choose.
const CHOICES: std::ops::RangeInclusive<u8> = 130..=190;

/// All addresses of a cluster lie in 10.N.0.0/16.
#[derive(Clone, Copy)]
pub struct Plan(pub u8);

impl Plan {
    /// The first free range: no cluster has it and the host has no route into it. Wider routes
    /// (a default route, a whole 10.0.0.0/8) do not count: ours is more specific.
    pub fn choose(taken: &[u8]) -> anyhow::Result<Self> {
        let routes =
            process::output(Command::new("ip").args(["-4", "route", "show", "table", "all"]))?;
        let is_routed = |octet: u8| {
            let prefix = format!("10.{octet}.");
            routes
                .split_whitespace()
                .any(|word| word.starts_with(&prefix))
        };
        CHOICES
            .filter(|octet| !taken.contains(octet) && !is_routed(*octet))
            .map(Self)
            .find(|plan| !Path::new("/sys/class/net").join(plan.link()).exists())
            .context("no free address range for another cluster")
    }

    fn address(self, third: u8, fourth: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.0, third, fourth)
    }

    /// The host's address on the cluster's segment.
    pub fn host(self) -> Ipv4Addr {
        self.address(0, 1)
    }

    /// A node's address; nodes count from 1.
    pub fn node(self, index: u8) -> Ipv4Addr {
        self.address(0, 10 + index)
    }

    /// A node's pods.
    pub fn pods(self, index: u8) -> String {
        format!("{}/24", self.address(15 + index, 0))
    }

    /// All nodes' pods.
    pub fn all_pods(self) -> String {
        format!("{}/20", self.address(16, 0))
    }

    /// The range of service addresses.
    pub fn services(self) -> String {
        format!("{}/20", self.address(96, 0))
    }

    /// The service `kubernetes`, always the range's first address.
    pub fn api_service(self) -> Ipv4Addr {
        self.address(96, 1)
    }

    /// The cluster's DNS service.
    pub fn dns_service(self) -> Ipv4Addr {
        self.address(96, 10)
    }

    /// The interface on the host.
    pub fn link(self) -> String {
        format!("ebs-{}", self.0)
    }
}

/// Makes the host's interface, with the cable's other end still loose. While it is there, nobody else
/// chooses the same addresses.
pub fn create_link(journal: &Journal, plan: Plan) -> anyhow::Result<()> {
    let link = plan.link();
    journal.record(&Entry::Link { name: link.clone() })?;
    batch(
        Command::new("ip"),
        &format!("link add {link} type veth peer name {link}-loose\n"),
    )
}

/// Plugs the host's cable into the switch, and sets the host's routes into the cluster.
pub fn connect_host(plan: Plan, switch: Sandbox, nodes: u8) -> anyhow::Result<()> {
    let link = plan.link();
    batch(
        switch.command("ip"),
        "link add switch type bridge\nlink set lo up\nlink set switch up\n",
    )?;
    let mut host = format!(
        "link set {link}-loose netns {pid} name host\n\
         address add {address}/24 dev {link}\n\
         link set {link} up\n\
         route add {services} via {first}\n",
        pid = switch.pid(),
        address = plan.host(),
        services = plan.services(),
        first = plan.node(1),
    );
    for index in 1..=nodes {
        host.push_str(&format!(
            "route add {} via {}\n",
            plan.pods(index),
            plan.node(index)
        ));
    }
    batch(Command::new("ip"), &host)?;
    batch(
        switch.command("ip"),
        "link set host master switch\nlink set host up\n",
    )
}

/// Lays the cable between a node and the switch, and the node's routes to the others' pods.
pub fn connect_node(
    plan: Plan,
    switch: Sandbox,
    node: Sandbox,
    index: u8,
    nodes: u8,
) -> anyhow::Result<()> {
    batch(
        switch.command("ip"),
        &format!(
            "link add node{index} type veth peer name eth0 netns {pid}\n\
             link set node{index} master switch\n\
             link set node{index} up\n",
            pid = node.pid()
        ),
    )?;
    let mut inside = format!(
        "link set lo up\n\
         address add {}/24 dev eth0\n\
         link set eth0 up\n\
         route add default via {}\n",
        plan.node(index),
        plan.host()
    );
    for other in (1..=nodes).filter(|other| *other != index) {
        inside.push_str(&format!(
            "route add {} via {}\n",
            plan.pods(other),
            plan.node(other)
        ));
    }
    batch(node.command("ip"), &inside)
}

/// Runs several `ip` commands in one process.
fn batch(mut ip: Command, commands: &str) -> anyhow::Result<()> {
    let mut child = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(commands.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "cannot set the network up: {}in: {commands}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
