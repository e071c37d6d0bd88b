//! Provider `source`: a Kubernetes built from source, each node in namespaces of its own on this
//! machine. It leaves the host's iptables, sysctls and services alone.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{
    Cluster, Progress, addons, cgroup,
    control_plane::{self, Program},
    network::{self, Plan},
    node, pki,
    process::{self, Process},
    sandbox::Sandbox,
    state::{self, Provider, Record},
};
use crate::{architecture::Architecture, generate, image, steps};

/// A search path of our own: what the caller's says must not change the cluster.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The process that holds a node's namespaces, by its name in the journal.
fn holder(node: &str) -> String {
    format!("{node} namespaces")
}

/// Makes a new cluster.
pub fn up(name: &str, nodes: u8, progress: &Progress) -> anyhow::Result<Cluster> {
    if !steps::is_root() {
        bail!("provider source makes network namespaces and control groups: run it as root");
    }
    if nodes > network::MAX_NODES {
        bail!("at most {} nodes", network::MAX_NODES);
    }
    setup()?;
    let (record, plan) = reserve(name, nodes)?;
    let source = Source {
        folder: record.folder(),
        cluster: Cluster { record },
        plan,
        progress,
    };
    source.build()?;
    let mut record = source.cluster.record;
    record.ready = true;
    record.save()?;
    Ok(Cluster { record })
}

/// What the cluster is made of; a second run takes no time.
fn setup() -> anyhow::Result<()> {
    for script in ["packages.sh", "kubernetes.sh"] {
        let path = generate::root().join("hack/setup").join(script);
        let status = Command::new("bash")
            .arg(&path)
            .status()
            .context("cannot run bash")?;
        if !status.success() {
            bail!("hack/setup/{script} ended with {status}");
        }
    }
    Ok(())
}

/// Chooses addresses and makes the host's interface, so that no other cluster takes the same ones.
fn reserve(name: &str, nodes: u8) -> anyhow::Result<(Record, Plan)> {
    let _lock = state::lock_machine()?;
    let taken: Vec<u8> = Record::all()
        .iter()
        .filter_map(|record| record.network)
        .collect();
    let plan = Plan::choose(&taken)?;
    let record = Record {
        name: name.to_owned(),
        provider: Provider::Source,
        nodes,
        kubeconfig: state::folder(name).join("kubeconfig"),
        network: Some(plan.0),
        ready: false,
        images: BTreeMap::new(),
    };
    record.save()?;
    let journal = record.journal();
    journal.begin()?;
    network::create_link(&journal, plan)?;
    Ok((record, plan))
}

/// The names of the nodes.
fn nodes(record: &Record) -> Vec<String> {
    (1..=record.nodes)
        .map(|index| format!("{}-{index}", record.name))
        .collect()
}

/// Whether every process that `up` started still runs.
pub fn is_whole(record: &Record) -> bool {
    let processes = record.journal().processes();
    !processes.is_empty() && processes.iter().all(|(_, process)| process.is_running())
}

/// A node's namespaces.
fn sandbox(record: &Record, node: &str) -> anyhow::Result<Sandbox> {
    let wanted = holder(node);
    record
        .journal()
        .processes()
        .into_iter()
        .find(|(what, process)| *what == wanted && process.is_running())
        .map(|(_, process)| Sandbox::of(process, true))
        .with_context(|| format!("node {node} does not run; see `cargo xtask cluster status`"))
}

/// Puts an image onto every node.
pub fn load(record: &Record, archive: &Path) -> anyhow::Result<()> {
    for node in nodes(record) {
        import(sandbox(record, &node)?, archive).with_context(|| format!("on node {node}"))?;
    }
    Ok(())
}

/// Imports an image into a node's containerd.
fn import(sandbox: Sandbox, archive: &Path) -> anyhow::Result<()> {
    let file = File::open(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    process::output(
        sandbox
            .command("ctr")
            .args(["--namespace=k8s.io", "images", "import", "-"])
            .stdin(file),
    )
    .map(|_| ())
}

struct Source<'a> {
    cluster: Cluster,
    plan: Plan,
    folder: PathBuf,
    progress: &'a Progress,
}

impl Source<'_> {
    fn build(&self) -> anyhow::Result<()> {
        let record = &self.cluster.record;
        let nodes = nodes(record);
        self.progress
            .say(&format!("addresses 10.{}.0.0/16", self.plan.0));
        fs::create_dir_all(self.folder.join("logs"))?;
        fs::create_dir_all(self.folder.join("pki"))?;
        let ca = pki::create(
            &self.folder.join("pki"),
            &record.kubeconfig,
            self.plan,
            &record.name,
        )?;
        let images = images()?;

        let journal = record.journal();
        let switch = Sandbox::network(&journal, "switch namespace", &self.log("switch"))?;
        network::connect_host(self.plan, switch, record.nodes)?;
        let mut sandboxes = Vec::new();
        for (index, name) in (1..).zip(&nodes) {
            cgroup::create(&journal, &node::cgroup_name(self.plan, name))?;
            sandboxes.push(self.make_node(&ca, switch, name, index)?);
        }
        let Some(first) = sandboxes.first().copied() else {
            bail!("a cluster needs a node");
        };
        self.progress.say("namespaces, cables and control groups");

        self.start(first, "", control_plane::etcd())?;
        let apiserver = self.start(first, "", control_plane::apiserver(self.plan))?;
        self.progress.say("etcd and kube-apiserver start");
        for (index, (name, sandbox)) in (1..).zip(nodes.iter().zip(&sandboxes)) {
            let [containerd, ..] = node::programs(name, self.plan, index);
            self.start(*sandbox, name, containerd)?;
        }
        for (name, sandbox) in nodes.iter().zip(&sandboxes) {
            self.wait(&format!("{name}-containerd"), 20, || {
                process::output(sandbox.command("ctr").arg("version")).map(|_| ())
            })?;
            for image in &images {
                import(*sandbox, image)?;
            }
        }
        self.progress.say("containerd has its images");
        self.wait(&apiserver, 60, || {
            process::output(self.cluster.kubectl().args(["get", "--raw=/readyz"])).map(|_| ())
        })?;
        self.progress.say("kube-apiserver is ready");

        self.start(first, "", control_plane::controller_manager())?;
        self.start(first, "", control_plane::scheduler())?;
        let mut kubelet = String::new();
        for (index, (name, sandbox)) in (1..).zip(nodes.iter().zip(&sandboxes)) {
            let [_, program, proxy] = node::programs(name, self.plan, index);
            kubelet = self.start(*sandbox, name, program)?;
            self.start(*sandbox, name, proxy)?;
        }
        self.apply(&addons::coredns(self.plan))?;
        self.wait(&kubelet, 60, || self.are_nodes_ready())?;
        self.progress.say("all nodes are Ready");
        self.wait(&kubelet, 60, || self.is_dns_ready())?;
        self.progress.say("CoreDNS is ready");
        Ok(())
    }

    fn make_node(
        &self,
        ca: &pki::Authority,
        switch: Sandbox,
        name: &str,
        index: u8,
    ) -> anyhow::Result<Sandbox> {
        let record = &self.cluster.record;
        let folder = self.folder.join(name);
        node::configure(&folder, name, self.plan, index)?;
        ca.create_node(&folder, self.plan, &record.name, (name, index))?;
        let sandbox = Sandbox::node(
            &record.journal(),
            &holder(name),
            &self.log(&format!("{name}-namespaces")),
            (
                &self.folder,
                &folder,
                &state::cache().join("kubernetes/bin"),
            ),
        )?;
        network::connect_node(self.plan, switch, sandbox, index, record.nodes)?;
        Ok(sandbox)
    }

    /// Starts a program in a node and returns the name of its log.
    fn start(&self, sandbox: Sandbox, node: &str, program: Program) -> anyhow::Result<String> {
        let separator = if node.is_empty() { "" } else { "-" };
        let what = format!("{node}{separator}{}", program.name);
        let path = match program.name {
            "containerd" => program.name.to_owned(),
            ours => format!("/run/bin/{ours}"),
        };
        process::start(
            &self.cluster.record.journal(),
            &what,
            &self.log(&what),
            sandbox
                .command("env")
                .args(["-i", PATH, "HOME=/"])
                .arg(path)
                .args(program.args),
        )?;
        Ok(what)
    }

    fn log(&self, what: &str) -> PathBuf {
        self.folder.join("logs").join(format!("{what}.log"))
    }

    /// Repeats a check until it succeeds. Should a program end meanwhile, or the time run out, the
    /// error shows the end of the log that tells why.
    fn wait(
        &self,
        what: &str,
        seconds: u64,
        mut check: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            let Err(error) = check() else { return Ok(()) };
            let processes = self.cluster.record.journal().processes();
            let ended = processes
                .iter()
                .find(|(_, process): &&(String, Process)| !process.is_running());
            let (reason, log) = match ended {
                Some((ended, _)) => (format!("{ended} has ended"), ended.as_str()),
                None if Instant::now() > deadline => (
                    format!("{what} is not ready after {seconds} s: {error}"),
                    what,
                ),
                None => {
                    thread::sleep(Duration::from_millis(200));
                    continue;
                }
            };
            let log = self.log(&log.replace(' ', "-"));
            bail!(
                "{reason}\n--- the end of {} ---\n{}",
                log.display(),
                process::tail(&log, 20)
            );
        }
    }

    fn apply(&self, objects: &str) -> anyhow::Result<()> {
        let mut child = self
            .cluster
            .kubectl()
            .args(["apply", "--server-side", "--validate=false", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run kubectl")?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(objects.as_bytes())?;
        }
        let status = child.wait()?;
        if !status.success() {
            bail!("kubectl apply ended with {status}");
        }
        Ok(())
    }

    fn are_nodes_ready(&self) -> anyhow::Result<()> {
        let path = r#"-o=jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{" "}{end}"#;
        let found = process::output(self.cluster.kubectl().args(["get", "nodes", path]))?;
        let ready = found.split_whitespace().filter(|word| *word == "True");
        if ready.count() < usize::from(self.cluster.record.nodes) {
            bail!("not all nodes are Ready");
        }
        Ok(())
    }

    fn is_dns_ready(&self) -> anyhow::Result<()> {
        let ready = process::output(self.cluster.kubectl().args([
            "--namespace=kube-system",
            "get",
            "deployment/coredns",
            "-o=jsonpath={.status.readyReplicas}",
        ]))?;
        if ready.trim() != "1" {
            bail!("CoreDNS is not ready");
        }
        Ok(())
    }
}

/// The images without which no pod starts.
fn images() -> anyhow::Result<Vec<PathBuf>> {
    let cache = state::cache();
    [
        (node::PAUSE_IMAGE, "pause"),
        (addons::COREDNS_IMAGE, "coredns"),
    ]
    .into_iter()
    .map(|(name, program)| {
        let image = image::Image {
            name,
            binary: &cache.join("kubernetes/bin").join(program),
            program,
            user: image::NONROOT,
            architecture: Architecture::own()?,
        };
        Ok(image::archive(&image, &cache.join("images"))?.path)
    })
    .collect()
}
