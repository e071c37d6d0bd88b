//! Provider `existing`: the user's own cluster, with consent. It only writes down where it is: nothing
//! of the cluster itself is made, changed or removed here.

use std::{collections::BTreeMap, env, path::PathBuf};

use anyhow::{Context, bail};

use super::{
    Cluster, Progress, process,
    state::{Provider, Record},
};

/// Takes the cluster of $KUBECONFIG.
pub fn up(name: &str, consent: bool, progress: &Progress) -> anyhow::Result<Cluster> {
    let path = env::var_os("KUBECONFIG")
        .filter(|path| !path.is_empty())
        .context("provider existing uses the cluster of $KUBECONFIG, which is not set")?;
    let kubeconfig = PathBuf::from(path)
        .canonicalize()
        .context("$KUBECONFIG must be the path of one file")?;
    let mut record = Record {
        name: name.to_owned(),
        provider: Provider::Existing,
        nodes: 0,
        kubeconfig,
        network: None,
        ready: true,
        images: BTreeMap::new(),
    };
    let cluster = Cluster {
        record: record.clone(),
    };
    let server = process::output(cluster.kubectl().args([
        "config",
        "view",
        "--minify",
        "--output=jsonpath={.current-context} at {.clusters[0].cluster.server}",
    ]))?;
    if !consent {
        bail!(
            "this would install into and load {server}; repeat it with --yes if that is what you want"
        );
    }
    let nodes = process::output(cluster.kubectl().args(["get", "nodes", "--output=name"]))?;
    record.nodes = u8::try_from(nodes.lines().count()).unwrap_or(u8::MAX);
    record.save()?;
    progress.say(&format!("uses {server} as it is"));
    Ok(Cluster { record })
}

/// How images get there, which only the user can know.
pub fn explain_images(image: &str, archive: &std::path::Path) -> String {
    format!(
        "{image} must be on the nodes already; its archive is {}: on each node `ctr -n k8s.io images \
         import` it, or push it to a registry and name that in config/ (kustomize `images`)",
        archive.display()
    )
}
