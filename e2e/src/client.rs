//! A client for a cluster given by its kubeconfig, as its administrator or as somebody else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// Connects as the kubeconfig's user.
pub async fn connect(kubeconfig: &Path) -> anyhow::Result<Client> {
    Ok(Client::try_from(config(kubeconfig).await?)?)
}

/// Connects as another user, which the kubeconfig's user must be allowed to impersonate.
pub async fn connect_as(kubeconfig: &Path, user: &str) -> anyhow::Result<Client> {
    let mut config = config(kubeconfig).await?;
    config.auth_info.impersonate = Some(user.to_owned());
    Ok(Client::try_from(config)?)
}

/// The same, but a request that fails has failed: the usual client asks again after a 503, which hides what another one,
/// such as the HPA controller's, meets.
pub async fn connect_once(kubeconfig: &Path) -> anyhow::Result<Client> {
    let mut config = config(kubeconfig).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// Connects to the controller manager, which listens beside the API server where clusters are built from source. Its
/// certificate is its own.
pub async fn controller_manager(kubeconfig: &Path) -> anyhow::Result<Client> {
    let mut config = config(kubeconfig).await?;
    let host = config
        .cluster_url
        .host()
        .context("the kubeconfig has no host")?;
    config.cluster_url = format!("https://{host}:10257").parse()?;
    config.accept_invalid_certs = true;
    config.connect_timeout = Some(Duration::from_secs(2));
    Ok(Client::try_from(config)?)
}

async fn config(kubeconfig: &Path) -> anyhow::Result<Config> {
    // Of several providers that are compiled in, this process uses one; a second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("cannot read the kubeconfig {}", kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    let mut config = config.context("the kubeconfig has no usable context")?;
    // Logs and watches stay silent for long.
    config.read_timeout = None;
    Ok(config)
}

/// The repository's top folder.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
