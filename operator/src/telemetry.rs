//! Structured logs on standard error, configured by flags; never metrics (see `metrics`).

use tracing_subscriber::EnvFilter;

/// How to log.
#[derive(clap::Args, Debug)]
#[group(id = "telemetry")]
pub struct Args {
    /// Log filter, as tracing's EnvFilter takes it
    #[arg(
        long,
        env = "EBPF_SCALER_LOG",
        // kube logs every refusal as an error by itself; what it means is known further up.
        default_value = "info,kube_client=off",
        global = true
    )]
    pub log: String,
    /// Log as text for people or as JSON lines
    #[arg(
        long,
        env = "EBPF_SCALER_LOG_FORMAT",
        default_value = "json",
        global = true
    )]
    pub log_format: Format,
}

/// The shape of a log line.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub enum Format {
    /// One JSON object a line
    Json,
    /// For people
    Text,
}

impl Args {
    /// Installs the global subscriber.
    ///
    /// # Errors
    /// When the filter does not parse; the message names it.
    pub fn init(&self) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(&self.log)
            .map_err(|e| anyhow::anyhow!("--log {:?} is not a log filter: {e}", self.log))?;
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr);
        match self.log_format {
            Format::Json => builder.json().flatten_event(true).init(),
            Format::Text => builder.init(),
        }
        Ok(())
    }
}
