//! Every flag of the operator, each with its environment variable; nothing else reads the environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};

use crate::{simulate, telemetry};

/// Reconciles EbpfScaler resources and adjusts replicas.
#[derive(Parser, Debug)]
#[command(name = "operator", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Something else than running the operator
    #[command(subcommand)]
    pub command: Option<Command>,

    /// For running it
    #[command(flatten)]
    pub args: Args,
}

/// What needs no cluster.
#[derive(Subcommand, Debug, Clone, PartialEq)]
pub enum Command {
    /// Answer scenarios on standard input, one JSON object a line, with what the HPA profile decides
    Replay,
    /// Run a load through a model of the workload, and show what a scaler makes of it beside HPA and KPA
    Simulate(Box<simulate::Args>),
}

/// The flags of running the operator.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Logs
    #[command(flatten)]
    pub telemetry: telemetry::Args,

    /// Namespace that ebpf-scaler is installed in
    #[arg(long, env = "EBPF_SCALER_NAMESPACE", default_value = "ebpf-scaler")]
    pub namespace: String,

    /// Who this replica is in the election; the pod's name by default
    #[arg(long, env = "EBPF_SCALER_IDENTITY", default_value_t = default_identity(), hide_default_value = true)]
    pub identity: String,

    /// Address of /metrics, /healthz and /readyz
    #[arg(
        long,
        env = "EBPF_SCALER_ADMIN_ADDRESS",
        default_value = "0.0.0.0:8080"
    )]
    pub admin_address: SocketAddr,

    /// Election and certificates
    #[command(flatten)]
    pub leader: LeaderArgs,

    /// Certificates
    #[command(flatten)]
    pub certs: CertArgs,

    /// The collector's streams and the aggregated API
    #[command(flatten)]
    pub collector: CollectorArgs,

    /// How often all scalers are decided even when nothing arrived
    #[arg(long, env = "EBPF_SCALER_TICK", default_value = "250ms", value_parser = humantime::parse_duration)]
    pub tick: Duration,

    /// Decisions that the ScalingHistory of an EbpfScaler keeps, 200 at most; 0 writes none
    #[arg(long, env = "EBPF_SCALER_HISTORY_ENTRIES", default_value = "30")]
    pub history_entries: usize,

    /// Timeout of one write; at most what the lease leaves after its renewal deadline
    #[arg(long, env = "EBPF_SCALER_WRITE_TIMEOUT", default_value = "3s", value_parser = humantime::parse_duration)]
    pub write_timeout: Duration,
}

/// The election.
#[derive(clap::Args, Debug)]
pub struct LeaderArgs {
    /// Name of the Lease
    #[arg(
        long,
        env = "EBPF_SCALER_LEASE_NAME",
        default_value = "ebpf-scaler-operator"
    )]
    pub lease_name: String,

    /// How long others wait for a silent leader
    #[arg(long, env = "EBPF_SCALER_LEASE_DURATION", default_value = "12s", value_parser = humantime::parse_duration)]
    pub lease_duration: Duration,

    /// How long a leader writes after its last renewal
    #[arg(long, env = "EBPF_SCALER_LEASE_RENEW_DEADLINE", default_value = "8s", value_parser = humantime::parse_duration)]
    pub lease_renew_deadline: Duration,

    /// How often a leader renews and a standby looks
    #[arg(long, env = "EBPF_SCALER_LEASE_RETRY", default_value = "2s", value_parser = humantime::parse_duration)]
    pub lease_retry: Duration,
}

/// Certificates.
#[derive(clap::Args, Debug)]
pub struct CertArgs {
    /// Make and rotate certificates; false where cert-manager does
    #[arg(long, env = "EBPF_SCALER_MANAGE_CERTIFICATES", default_value_t = true, action = clap::ArgAction::Set)]
    pub manage_certificates: bool,

    /// Life of a certificate authority
    #[arg(long, env = "EBPF_SCALER_CA_VALIDITY", default_value = "365d", value_parser = humantime::parse_duration)]
    pub ca_validity: Duration,

    /// Life of a serving certificate
    #[arg(long, env = "EBPF_SCALER_CERTIFICATE_VALIDITY", default_value = "30d", value_parser = humantime::parse_duration)]
    pub certificate_validity: Duration,

    /// From publishing a certificate authority until it signs
    #[arg(long, env = "EBPF_SCALER_CA_PROPAGATION", default_value = "5m", value_parser = humantime::parse_duration)]
    pub ca_propagation: Duration,

    /// APIServices whose caBundle is kept, if they point to our service
    #[arg(
        long,
        env = "EBPF_SCALER_API_SERVICE",
        value_name = "NAME,...",
        value_delimiter = ',',
        default_value = "v1beta1.external.metrics.k8s.io,v1alpha1.signals.ebpfscaler.io"
    )]
    pub api_service: Vec<String>,

    /// Keep the caBundle of the APIServices of custom.metrics.k8s.io too; config/custom-metrics sets it and
    /// gives the right to
    #[arg(long, env = "EBPF_SCALER_CUSTOM_METRICS")]
    pub custom_metrics: bool,
}

/// Where metrics come from.
#[derive(clap::Args, Debug, Clone)]
pub struct CollectorArgs {
    /// Headless service of the collector's API servers, resolved by DNS
    #[arg(
        long,
        env = "EBPF_SCALER_COLLECTOR_SERVICE",
        default_value = "ebpf-scaler-report.ebpf-scaler.svc"
    )]
    pub collector_service: String,

    /// Port of that service
    #[arg(long, env = "EBPF_SCALER_COLLECTOR_PORT", default_value_t = 9443)]
    pub collector_port: u16,

    /// Addresses (ip:port, separated by commas) to use instead of DNS
    #[arg(long, env = "EBPF_SCALER_COLLECTOR_ADDRESSES", value_delimiter = ',')]
    pub collector_addresses: Vec<SocketAddr>,

    /// Name that the collector's certificate must have
    #[arg(
        long,
        env = "EBPF_SCALER_COLLECTOR_SERVER_NAME",
        default_value = "ebpf-scaler-report.ebpf-scaler.svc"
    )]
    pub collector_server_name: String,

    /// Token that is presented to the collector; read again for each connection
    #[arg(
        long,
        env = "EBPF_SCALER_COLLECTOR_TOKEN_FILE",
        default_value = "/var/run/secrets/ebpf-scaler/token"
    )]
    pub collector_token_file: PathBuf,

    /// How often addresses are resolved again
    #[arg(long, env = "EBPF_SCALER_COLLECTOR_RESOLVE_PERIOD", default_value = "2s", value_parser = humantime::parse_duration)]
    pub collector_resolve_period: Duration,

    /// An answer older than this counts as missing
    #[arg(long, env = "EBPF_SCALER_STALE_AFTER", default_value = "5s", value_parser = humantime::parse_duration)]
    pub stale_after: Duration,

    /// How often external metrics are asked for
    #[arg(long, env = "EBPF_SCALER_EXTERNAL_POLL_PERIOD", default_value = "5s", value_parser = humantime::parse_duration)]
    pub external_poll_period: Duration,

    /// How often our own metrics are asked for through the aggregated API while no stream delivers them
    #[arg(long, env = "EBPF_SCALER_FALLBACK_POLL_PERIOD", default_value = "1s", value_parser = humantime::parse_duration)]
    pub fallback_poll_period: Duration,
}

fn default_identity() -> String {
    // A pod's host name is its name; the process id tells two runs on one host apart.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}

impl Args {
    /// Relations between flags that clap cannot express.
    ///
    /// # Errors
    /// A message that names the flags and what would be right.
    pub fn check(&self) -> anyhow::Result<()> {
        let l = &self.leader;
        anyhow::ensure!(
            l.lease_renew_deadline + self.write_timeout < l.lease_duration,
            "--lease-renew-deadline ({:?}) plus --write-timeout ({:?}) must be less than --lease-duration ({:?}), \
             or a write could land in another leader's term",
            l.lease_renew_deadline,
            self.write_timeout,
            l.lease_duration
        );
        anyhow::ensure!(
            l.lease_retry < l.lease_renew_deadline,
            "--lease-retry ({:?}) must be less than --lease-renew-deadline ({:?})",
            l.lease_retry,
            l.lease_renew_deadline
        );
        anyhow::ensure!(
            self.tick >= Duration::from_millis(10),
            "--tick must be at least 10ms"
        );
        anyhow::ensure!(
            self.history_entries <= 200,
            "--history-entries ({}) must be at most 200, which fill about 100 KiB",
            self.history_entries
        );
        let c = &self.certs;
        anyhow::ensure!(
            c.ca_validity >= c.ca_propagation * 6 && c.certificate_validity <= c.ca_validity,
            "--ca-validity must be at least six times --ca-propagation and at least --certificate-validity"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_defaults_fit_together() {
        let cli = Cli::parse_from(["operator"]);
        assert_eq!(cli.command, None);
        cli.args.check().unwrap();
    }

    #[test]
    fn replay_is_a_subcommand_and_takes_none_of_the_flags() {
        let cli = Cli::parse_from(["operator", "replay"]);
        assert_eq!(cli.command, Some(Command::Replay));
        assert!(Cli::try_parse_from(["operator", "--tick=1s", "replay"]).is_err());
    }

    #[test]
    fn every_flag_has_its_variable_and_a_help_text() {
        for arg in Cli::command().get_arguments() {
            let name = arg.get_id().as_str();
            if matches!(name, "help" | "version") {
                continue;
            }
            let env = arg.get_env().unwrap_or_else(|| panic!("{name}: no env"));
            assert_eq!(
                env.to_str().unwrap(),
                format!("EBPF_SCALER_{}", name.to_uppercase())
            );
            assert!(arg.get_help().is_some(), "{name}: no help");
        }
    }
}
