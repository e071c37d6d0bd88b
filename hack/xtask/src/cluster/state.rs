//! Where clusters keep their files, and what is known of each. It never looks at a running cluster.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::journal::Journal;

/// How a cluster is made.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// kind where docker answers, otherwise source
    Auto,
    /// Kubernetes built from source, in network namespaces of this machine: Linux, root
    Source,
    /// Nodes as docker containers, by kind
    Kind,
    /// The cluster of $KUBECONFIG, used as it is; asks for --yes
    Existing,
}

/// What is written down of a cluster before anything of it is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub name: String,
    pub provider: Provider,
    pub nodes: u8,
    pub kubeconfig: PathBuf,
    /// The second octet of its addresses, for provider source.
    pub network: Option<u8>,
    /// Whether `up` came to its end.
    pub ready: bool,
    /// The identity of each image that was loaded, by its name.
    #[serde(default)]
    pub images: BTreeMap<String, String>,
}

/// Everything that is built or downloaded: $EBPF_SCALER_CACHE or .cache in the repository.
pub fn cache() -> PathBuf {
    std::env::var_os("EBPF_SCALER_CACHE")
        .filter(|path| !path.is_empty())
        .map_or_else(|| crate::generate::root().join(".cache"), PathBuf::from)
}

/// A cluster's folder.
pub fn folder(name: &str) -> PathBuf {
    cache().join("clusters").join(name)
}

/// What a cluster has made; it is there even when the record is not.
pub fn journal(name: &str) -> Journal {
    Journal::at(&folder(name).join("journal"))
}

/// A name becomes part of host names, paths and control groups.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    let is_good = !name.is_empty()
        && name.len() <= 24
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && !name.ends_with('-')
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if !is_good {
        bail!(
            "`{name}` cannot name a cluster: use up to 24 lower-case letters, digits and hyphens, a letter first"
        );
    }
    Ok(())
}

impl Record {
    /// The record of a cluster, if there is one.
    pub fn load(name: &str) -> anyhow::Result<Option<Self>> {
        let path = folder(name).join("cluster.json");
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map(Some)
                .with_context(|| format!("{} is damaged", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Every cluster of this cache, by name.
    pub fn all() -> Vec<Self> {
        let Ok(folders) = fs::read_dir(cache().join("clusters")) else {
            return Vec::new();
        };
        let mut records: Vec<Self> = folders
            .filter_map(|entry| Self::load(entry.ok()?.file_name().to_str()?).ok()?)
            .collect();
        records.sort_by(|a, b| a.name.cmp(&b.name));
        records
    }

    /// Writes it whole or not at all.
    pub fn save(&self) -> anyhow::Result<()> {
        let path = self.folder().join("cluster.json");
        let unfinished = self.folder().join(".cluster.json");
        fs::create_dir_all(self.folder())?;
        fs::write(&unfinished, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&unfinished, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    pub fn folder(&self) -> PathBuf {
        folder(&self.name)
    }

    pub fn journal(&self) -> Journal {
        journal(&self.name)
    }
}

/// Held while a cluster is made, changed or removed.
pub struct Lock(#[expect(dead_code, reason = "closing the file gives the lock back")] File);

impl Lock {
    /// Waits for whoever has it.
    pub fn take(name: &str) -> anyhow::Result<Self> {
        let folder = cache().join("clusters/.locks");
        fs::create_dir_all(&folder)?;
        let path = folder.join(name);
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        if file.try_lock().is_err() {
            println!("    waiting for another command on cluster {name}");
            file.lock()?;
        }
        Ok(Self(file))
    }
}

/// Held while a cluster chooses what must be unique on the whole machine, where other checkouts with
/// caches of their own may do the same. Any folder can carry a lock; this one leaves no file.
pub fn lock_machine() -> anyhow::Result<File> {
    let folder = File::open("/sys/class/net").context("cannot read /sys/class/net")?;
    folder.lock().context("cannot lock /sys/class/net")?;
    Ok(folder)
}

/// Removes a folder tree; one that is gone already is no error.
pub fn remove_folder(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
