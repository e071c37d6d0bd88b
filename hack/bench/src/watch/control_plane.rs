//! A Kubernetes control plane on loopback, as far as watching needs one: etcd and the real kube-apiserver, and kwok, which
//! plays kubelet. No pod runs, nothing schedules; needs neither root nor a cluster.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use rcgen::KeyPair;

use super::client::Client;
use crate::apiserver::pki::{NAME, Pki};
use crate::interrupt;
use crate::process::Running;

/// The administrator's token.
pub const TOKEN: &str = "bench";
/// From its start to the first good answer of /readyz, on a busy machine.
const START: Duration = Duration::from_secs(120);

/// etcd, kube-apiserver and kwok; they end with this value.
pub struct ControlPlane {
    programs: PathBuf,
    directory: PathBuf,
    /// Where kube-apiserver listens.
    pub address: SocketAddr,
    etcd: SocketAddr,
    // In the order in which they are to end.
    kwok: Option<Running>,
    apiserver: Option<Running>,
    _etcd: Running,
}

impl ControlPlane {
    /// Starts etcd and kube-apiserver.
    pub fn start(directory: &Path, pki: &Pki) -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let cache = std::env::var_os("EBPF_SCALER_CACHE")
            .map_or_else(|| root.join(".cache"), PathBuf::from);
        let programs = cache.join("kubernetes/bin");
        let service_accounts = KeyPair::generate()?;
        for (name, text) in [
            ("ca.crt", &pki.ca),
            ("apiserver.crt", &pki.serving.certificate),
            ("apiserver.key", &pki.serving.key),
            ("sa.key", &service_accounts.serialize_pem()),
            ("sa.pub", &service_accounts.public_key_pem()),
            (
                "tokens.csv",
                &format!("{TOKEN},bench,bench,system:masters\n"),
            ),
        ] {
            let file = directory.join(name);
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let (address, etcd, peers) = (free()?, free()?, free()?);
        let mut command = Command::new(programs.join("etcd"));
        command
            .arg("--data-dir")
            .arg(directory.join("etcd"))
            .args(["--unsafe-no-fsync", "--log-level=error"])
            .arg(format!("--listen-client-urls=http://{etcd}"))
            .arg(format!("--advertise-client-urls=http://{etcd}"))
            .arg(format!("--listen-peer-urls=http://{peers}"));
        logged(&mut command, &directory.join("etcd.log"))?;
        let mut this = Self {
            _etcd: Running::start(&mut command)?,
            programs,
            directory: directory.to_owned(),
            address,
            etcd,
            kwok: None,
            apiserver: None,
        };
        this.start_apiserver(pki)?;
        Ok(this)
    }

    /// Starts kube-apiserver, which does not run, and waits until it is ready.
    pub fn start_apiserver(&mut self, pki: &Pki) -> anyhow::Result<()> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let mut command = Command::new(self.programs.join("kube-apiserver"));
        command.args([
            format!("--etcd-servers=http://{}", self.etcd),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.address.port()),
            // Nobody reaches it as a Service.
            "--advertise-address=192.0.2.1".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            "--service-cluster-ip-range=10.255.0.0/24".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            // No controller makes accounts, and the pods need none.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            "--service-account-issuer=https://bench".to_owned(),
            format!("--service-account-key-file={}", file("sa.pub")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            format!("--requestheader-client-ca-file={}", file("ca.crt")),
            "--requestheader-allowed-names=front-proxy-client".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
        ]);
        logged(&mut command, &self.directory.join("kube-apiserver.log"))?;
        let mut process = Running::start(&mut command)?;
        let ready = interrupt::until("kube-apiserver is ready", START, || {
            process.check()?;
            let client = Client::connect(self.address, pki);
            Ok(client.is_ok_and(|client| client.get("/readyz").is_ok()))
        });
        ready.with_context(|| format!("see {}", file("kube-apiserver.log")))?;
        self.apiserver = Some(process);
        Ok(())
    }

    /// Ends kube-apiserver.
    pub fn stop_apiserver(&mut self) {
        self.apiserver = None;
    }

    /// Starts kwok for all nodes.
    pub fn start_kwok(&mut self, kubeconfig: &Path) -> anyhow::Result<()> {
        let mut command = Command::new(self.programs.join("kwok"));
        command
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args([
                "--manage-all-nodes=true",
                "--node-lease-duration-seconds=40",
            ])
            .args(["--cidr=10.64.0.0/12", "--node-ip=192.0.2.2"])
            // It keeps its settings there, not in somebody's home.
            .env("KWOK_WORKDIR", self.directory.join("kwok"))
            .env("HOME", &self.directory);
        logged(&mut command, &self.directory.join("kwok.log"))?;
        self.kwok = Some(Running::start(&mut command)?);
        Ok(())
    }

    /// Ends kwok: from then on nothing changes by itself.
    pub fn stop_kwok(&mut self) {
        self.kwok = None;
    }

    /// An error if one has ended by itself.
    pub fn check(&mut self) -> anyhow::Result<()> {
        for program in self.kwok.iter_mut().chain(&mut self.apiserver) {
            program.check()?;
        }
        Ok(())
    }

    /// For its clients.
    pub fn kubeconfig(&self) -> String {
        let ca = self.directory.join("ca.crt");
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: bench\n\
             clusters: [{{name: bench, cluster: {{server: \"https://{}\", tls-server-name: {NAME}, \
             certificate-authority: \"{}\"}}}}]\n\
             users: [{{name: bench, user: {{token: {TOKEN}}}}}]\n\
             contexts: [{{name: bench, context: {{cluster: bench, user: bench}}}}]\n",
            self.address,
            ca.display()
        )
    }
}

/// A port that nobody has now.
fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn logged(command: &mut Command, log: &Path) -> anyhow::Result<()> {
    let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
    command.stdout(log.try_clone()?).stderr(log);
    Ok(())
}
