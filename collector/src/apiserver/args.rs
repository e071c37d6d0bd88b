//! Every flag of `collector apiserver`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::delegate::Target;

/// Flags of `collector apiserver`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Where kube-apiserver reaches the metrics API, over TLS
    #[arg(long, env = "EBPF_SCALER_ADDRESS", default_value = "0.0.0.0:6443")]
    pub address: SocketAddr,
    /// Where agents report and operators subscribe, gRPC over TLS
    #[arg(
        long,
        env = "EBPF_SCALER_REPORT_ADDRESS",
        default_value = "0.0.0.0:9443"
    )]
    pub report_address: SocketAddr,
    /// Where /metrics, /healthz and /readyz are served, plain HTTP
    #[arg(
        long,
        env = "EBPF_SCALER_ADMIN_ADDRESS",
        default_value = "0.0.0.0:8080"
    )]
    pub admin_address: SocketAddr,
    /// Namespace that ebpf-scaler is installed in
    #[arg(long, env = "EBPF_SCALER_NAMESPACE", default_value = "ebpf-scaler")]
    pub namespace: String,
    /// Secret in that namespace with the serving certificate (tls.crt, tls.key); it is waited for and followed
    #[arg(
        long,
        env = "EBPF_SCALER_TLS_SECRET",
        default_value = "ebpf-scaler-apiserver-tls"
    )]
    pub tls_secret: String,
    /// Read the serving certificate from this file instead of the Secret; followed too
    #[arg(long, env = "EBPF_SCALER_TLS_CERT_FILE", requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// The key of --tls-cert-file
    #[arg(long, env = "EBPF_SCALER_TLS_KEY_FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,
    /// Service account of the agents, in our namespace: only its tokens may report
    #[arg(
        long,
        env = "EBPF_SCALER_AGENT_SERVICE_ACCOUNT",
        default_value = "ebpf-scaler-agent"
    )]
    pub agent_service_account: String,
    /// How long to wait at the start for the agents of 90 % of the nodes before being ready without them
    #[arg(
        long,
        env = "EBPF_SCALER_AGENTS_TIMEOUT",
        default_value = "20s",
        value_parser = humantime::parse_duration
    )]
    pub agents_timeout: Duration,
    /// How long to go on serving after the order to end, until nobody is sent here any more
    #[arg(
        long,
        env = "EBPF_SCALER_SHUTDOWN_DELAY",
        default_value = "3s",
        value_parser = humantime::parse_duration
    )]
    pub shutdown_delay: Duration,
    /// Serve custom.metrics.k8s.io too, for HPAs of type Pods and Object; config/custom-metrics sets it and
    /// registers the group, of which a cluster can have one provider
    #[arg(long, env = "EBPF_SCALER_CUSTOM_METRICS")]
    pub custom_metrics: bool,
    /// Another provider of external.metrics.k8s.io or custom.metrics.k8s.io, of which a cluster can have one:
    /// metrics whose names are not ours are asked for there; see docs/coexist.md
    #[arg(
        long,
        env = "EBPF_SCALER_DELEGATE",
        value_name = "GROUP=URL,...",
        value_delimiter = ','
    )]
    pub delegate: Vec<Target>,
    /// Bundle of the CAs that sign the delegates' certificates, PEM; followed
    #[arg(
        long,
        env = "EBPF_SCALER_DELEGATE_CA_FILE",
        default_value = "/etc/ebpf-scaler/delegate/ca.crt"
    )]
    pub delegate_ca_file: PathBuf,
    /// Token by which the delegates know us, of our service account; read again as the kubelet renews it
    #[arg(
        long,
        env = "EBPF_SCALER_DELEGATE_TOKEN_FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    pub delegate_token_file: PathBuf,
    /// How long a delegate may take to answer; then the client gets a 504
    #[arg(
        long,
        env = "EBPF_SCALER_DELEGATE_TIMEOUT",
        default_value = "10s",
        value_parser = humantime::parse_duration
    )]
    pub delegate_timeout: Duration,
    /// How often delegates are asked for the names of their metrics, which our discovery tells too
    #[arg(
        long,
        env = "EBPF_SCALER_DELEGATE_DISCOVERY_PERIOD",
        default_value = "30s",
        value_parser = humantime::parse_duration
    )]
    pub delegate_discovery_period: Duration,
    /// How long a query or a subscription keeps a family measured that follows demand
    #[arg(
        long,
        env = "EBPF_SCALER_DEMAND_HOLD",
        default_value = "10m",
        value_parser = humantime::parse_duration
    )]
    pub demand_hold: Duration,
    /// How often the token of an open stream is reviewed again, so that a revoked one ends it
    #[arg(
        long,
        env = "EBPF_SCALER_TOKEN_REVIEW_PERIOD",
        default_value = "5m",
        value_parser = humantime::parse_duration
    )]
    pub token_review_period: Duration,
    /// TLS connections to each port at once; one address may have half of them
    #[arg(long, env = "EBPF_SCALER_MAX_CONNECTIONS", default_value_t = 12_000)]
    pub max_connections: usize,
    /// How long a TLS handshake may take
    #[arg(
        long,
        env = "EBPF_SCALER_HANDSHAKE_TIMEOUT",
        default_value = "10s",
        value_parser = humantime::parse_duration
    )]
    pub handshake_timeout: Duration,
    /// How long a new connection may take to its first request, and any request's head to arrive
    #[arg(
        long,
        env = "EBPF_SCALER_HEADER_TIMEOUT",
        default_value = "15s",
        value_parser = humantime::parse_duration
    )]
    pub header_timeout: Duration,
    /// How long a connection may go without a request; kube-apiserver closes its own after 90s
    #[arg(
        long,
        env = "EBPF_SCALER_IDLE_TIMEOUT",
        default_value = "2m",
        value_parser = humantime::parse_duration
    )]
    pub idle_timeout: Duration,
}
