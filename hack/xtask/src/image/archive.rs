//! Writes container images as archives that containerd and docker import: one layer, a configuration
//! and a manifest. The same contents always give the same bytes. It needs no daemon.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::architecture::Architecture;

/// An image of one self-contained program.
pub struct Image<'a> {
    /// Name and tag, for example `ebpf-scaler/collector:dev`.
    pub name: &'a str,
    /// The program on this machine.
    pub binary: &'a Path,
    /// Its name in the image: it becomes /NAME and the entry point.
    pub program: &'a str,
    /// The user's number; 0 for those that must be root.
    pub user: u32,
    /// What the program is built for.
    pub architecture: Architecture,
}

/// An image on disk.
pub struct Archive {
    /// The image's name and tag.
    pub name: String,
    pub path: PathBuf,
    /// The configuration's digest: what every runtime calls the image's identity.
    pub id: String,
}

/// Users that files and logs may name; no password, no shell.
const PASSWD: &str = "root:x:0:0:root:/:/none\nnonroot:x:65532:65532:nonroot:/:/none\n";

/// Writes the image to FOLDER/NAME.tar, where NAME is without its prefix and tag.
pub fn archive(image: &Image<'_>, folder: &Path) -> anyhow::Result<Archive> {
    fs::create_dir_all(folder)?;
    let short = image.name.rsplit('/').next().unwrap_or(image.name);
    let short = short.split(':').next().unwrap_or(short);
    let path = folder.join(format!("{short}.tar"));
    let unfinished = folder.join(format!(".{short}.{}.tmp", std::process::id()));
    let id = write(image, &unfinished)
        .with_context(|| format!("cannot write the image {}", image.name))?;
    fs::rename(&unfinished, &path)?;
    Ok(Archive {
        name: image.name.to_owned(),
        path,
        id,
    })
}

fn write(image: &Image<'_>, path: &Path) -> anyhow::Result<String> {
    let mut layer = Vec::new();
    {
        let mut tar = tar::Builder::new(&mut layer);
        append_folder(&mut tar, "etc/")?;
        append(&mut tar, "etc/passwd", 0o644, PASSWD.as_bytes())?;
        let mut program = Vec::new();
        File::open(image.binary)
            .with_context(|| format!("cannot read {}", image.binary.display()))?
            .read_to_end(&mut program)?;
        append(&mut tar, image.program, 0o755, &program)?;
        tar.finish()?;
    }
    let layer_digest = digest(&layer);
    let config = serde_json::to_vec(&json!({
        "architecture": image.architecture.name(),
        "os": "linux",
        "config": {
            "Entrypoint": [format!("/{}", image.program)],
            "User": format!("{0}:{0}", image.user),
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
        "history": [{"created_by": "cargo xtask image"}],
    }))?;
    let id = digest(&config);
    let layer_name = format!("{layer_digest}.tar");
    let manifest = serde_json::to_vec(&json!([{
        "Config": format!("{id}.json"),
        "RepoTags": [format!("docker.io/{}", image.name)],
        "Layers": [layer_name],
    }]))?;
    let mut tar = tar::Builder::new(io::BufWriter::new(File::create(path)?));
    append(&mut tar, &format!("{id}.json"), 0o644, &config)?;
    append(&mut tar, &layer_name, 0o644, &layer)?;
    append(&mut tar, "manifest.json", 0o644, &manifest)?;
    tar.into_inner()?.flush()?;
    Ok(format!("sha256:{id}"))
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    name: &str,
    mode: u32,
    data: &[u8],
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    Ok(tar.append_data(&mut header, name, data)?)
}

fn append_folder(tar: &mut tar::Builder<impl Write>, name: &str) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o755);
    header.set_mtime(0);
    Ok(tar.append_data(&mut header, name, io::empty())?)
}

fn digest(data: &[u8]) -> String {
    Sha256::digest(data)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
