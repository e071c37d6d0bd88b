//! Every flag of the agent, in one place; reads nothing but flags and the environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ebpf_scaler_common::Family;

use super::tls;

/// Flags of `collector agent`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Name of the node this agent measures; NODE_NAME is read too
    #[arg(long, env = "EBPF_SCALER_NODE_NAME")]
    pub node_name: Option<String>,

    /// UID of the agent's own pod, by which it finds its kubelet's cgroups; POD_UID is read too
    #[arg(long, env = "EBPF_SCALER_POD_UID")]
    pub pod_uid: Option<String>,

    /// Where the node's /sys/fs/cgroup is mounted
    #[arg(
        long,
        env = "EBPF_SCALER_CGROUP_ROOT",
        default_value = "/host/cgroup",
        value_name = "DIR"
    )]
    pub cgroup_root: PathBuf,

    /// The kubepods directory, relative to the cgroup v2 tree, when it must not be searched for
    #[arg(long, env = "EBPF_SCALER_KUBEPODS", value_name = "DIR")]
    pub kubepods: Option<PathBuf>,

    /// Where API server replicas take reports, each address of the name is one replica
    #[arg(
        long,
        env = "EBPF_SCALER_REPORT_ADDRESS",
        default_value = "ebpf-scaler-report.ebpf-scaler.svc:9443",
        value_name = "HOST:PORT"
    )]
    pub report_address: String,

    /// The name that a replica's certificate must have, whatever address was connected to
    #[arg(
        long,
        env = "EBPF_SCALER_REPORT_SERVER_NAME",
        default_value = "ebpf-scaler-report.ebpf-scaler.svc",
        value_name = "NAME"
    )]
    pub report_server_name: String,

    /// The projected service-account token to present, read again at each connection
    #[arg(
        long,
        env = "EBPF_SCALER_TOKEN_FILE",
        default_value = "/var/run/secrets/ebpf-scaler/token",
        value_name = "FILE"
    )]
    pub token_file: PathBuf,

    /// Certificates (PEM) of the CA that signs the replicas', read again at each connection
    #[arg(
        long,
        env = "EBPF_SCALER_CA_FILE",
        default_value = "/etc/ebpf-scaler/ca/ca.crt",
        value_name = "FILE"
    )]
    pub ca_file: PathBuf,

    /// Address of /metrics, /healthz and /readyz
    #[arg(
        long,
        env = "EBPF_SCALER_ADMIN_ADDRESS",
        default_value = "[::]:8080",
        value_name = "IP:PORT"
    )]
    pub admin_address: SocketAddr,

    /// Ports whose requests are counted apart (metrics scrapes), for all pods
    #[arg(
        long,
        env = "EBPF_SCALER_EXCLUDED_PORTS",
        value_delimiter = ',',
        value_name = "PORT,..."
    )]
    pub excluded_ports: Vec<u16>,

    /// Pods that can be measured at once; more are counted as unmeasured
    #[arg(long, env = "EBPF_SCALER_MAX_PODS", default_value_t = 512)]
    pub max_pods: u32,

    /// How often counters are read and reported
    #[arg(long, env = "EBPF_SCALER_INTERVAL", default_value = "250ms", value_parser = humantime::parse_duration)]
    pub interval: Duration,

    /// For whom requests inside TLS are counted, by uprobes of their TLS libraries: needs hostPID and more
    /// capabilities (config/tls), and costs the probed services much of their throughput (docs/tls.md)
    #[arg(
        long,
        env = "EBPF_SCALER_TLS_UPROBES",
        value_enum,
        default_value_t = tls::Allowed::Never,
        value_name = "PODS"
    )]
    pub tls_uprobes: tls::Allowed,

    /// Signal families that are measured without anybody asking for them
    #[arg(
        long,
        env = "EBPF_SCALER_FAMILIES",
        value_delimiter = ',',
        default_value = "requests,network",
        value_name = "FAMILY,...",
        value_parser = family
    )]
    pub families: Vec<Family>,
}

/// A family as people write it.
fn family(text: &str) -> Result<Family, String> {
    Family::ALL
        .into_iter()
        .find(|family| family.as_str() == text)
        .ok_or_else(|| {
            let all = Family::ALL.map(Family::as_str).join(", ");
            format!("is none of {all}")
        })
}

impl Args {
    /// The node's name: the flag, then the variable that the downward API usually fills.
    pub fn node(&self) -> anyhow::Result<String> {
        self.node_name
            .clone()
            .or_else(|| non_empty("NODE_NAME"))
            .ok_or_else(|| {
                anyhow::anyhow!(
                    "no node name: set --node-name or NODE_NAME (downward API: spec.nodeName)"
                )
            })
    }

    /// The agent's own pod UID, if it runs in one.
    pub fn own_pod_uid(&self) -> Option<String> {
        self.pod_uid.clone().or_else(|| non_empty("POD_UID"))
    }

    /// Refuses values that cannot work, with the flag's name.
    pub fn validate(&self) -> anyhow::Result<()> {
        let interval = Duration::from_millis(50)..=Duration::from_secs(5);
        anyhow::ensure!(
            interval.contains(&self.interval),
            "--interval {} is not between 50ms and 5s",
            humantime::format_duration(self.interval)
        );
        anyhow::ensure!(
            (1..=65_536).contains(&self.max_pods),
            "--max-pods {} is not between 1 and 65536",
            self.max_pods
        );
        Ok(())
    }
}

fn non_empty(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|v| !v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn the_defaults_are_valid() {
        let args = Cli::parse_from(["agent"]).args;
        args.validate().unwrap();
        assert_eq!(args.families, [Family::Requests, Family::Network]);
    }

    #[test]
    fn every_flag_has_its_variable_and_a_help_text() {
        use clap::CommandFactory;
        let command = Cli::command();
        let flags = command.get_arguments().filter(|a| a.get_id() != "help");
        for flag in flags {
            let name = flag.get_id().as_str();
            let variable = flag.get_env().unwrap().to_str().unwrap();
            assert_eq!(variable, format!("EBPF_SCALER_{}", name.to_uppercase()));
            assert!(flag.get_help().is_some(), "{name}");
        }
    }

    #[test]
    fn impossible_values_name_their_flag() {
        let args = Cli::parse_from(["agent", "--interval", "1ms"]).args;
        let error = args.validate().unwrap_err().to_string();
        assert!(error.contains("--interval 1ms"), "{error}");
        let args = Cli::parse_from(["agent", "--max-pods", "0"]).args;
        assert!(
            args.validate()
                .unwrap_err()
                .to_string()
                .contains("--max-pods")
        );
    }

    #[test]
    fn lists_are_separated_by_commas() {
        let args = Cli::parse_from(["agent", "--excluded-ports", "9090,9100"]).args;
        assert_eq!(args.excluded_ports, [9090, 9100]);
    }
}
