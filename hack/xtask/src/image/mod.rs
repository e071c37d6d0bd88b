//! Builds the product's images without a daemon and loads them into a cluster. An image holds one
//! self-contained program and the names of its users, nothing else.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use crate::{
    architecture::Architecture,
    cluster::{self, Cluster, Progress},
    generate,
    steps::cargo,
};

mod archive;

pub use archive::{Archive, Image, archive};

/// Every component runs as this user unless its pod says otherwise.
pub const NONROOT: u32 = 65532;

#[derive(clap::Args)]
pub struct Args {
    /// Load the images onto every node of this cluster
    #[arg(long)]
    cluster: Option<String>,
    /// Where the archives go; the default is the cache's folder images, and for another architecture one below it
    #[arg(long)]
    out: Option<PathBuf>,
    /// What they are built for; the default is this machine's architecture
    #[arg(long, value_enum, conflicts_with = "cluster")]
    arch: Option<Architecture>,
    /// Which ones; the default is all
    #[arg(value_enum)]
    images: Vec<Component>,
}

/// What we publish.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    Collector,
    Operator,
    Sample,
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Collector, Self::Operator, Self::Sample];

    /// The program's name, in Cargo and in the image.
    fn program(self) -> &'static str {
        match self {
            Self::Collector => "collector",
            Self::Operator => "operator",
            Self::Sample => "sample",
        }
    }

    /// Name and tag, as the manifests in `config/` have it.
    fn image(self) -> String {
        format!("ebpf-scaler/{}:dev", self.program())
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let wanted = if args.images.is_empty() {
        &Component::ALL[..]
    } else {
        &args.images
    };
    // A wrong name should not cost a build.
    let cluster = args.cluster.as_deref().map(Cluster::open).transpose()?;
    let architecture = args.arch.map_or_else(Architecture::own, Ok)?;
    let out = args.out.unwrap_or_else(|| folder(architecture));
    let progress = Progress::new("image");
    let archives = build(wanted, architecture, &out, &progress)?;
    if let Some(cluster) = cluster {
        for archive in &archives {
            progress.say(&cluster.load_image(archive)?);
        }
    }
    for archive in archives {
        println!("{}", archive.path.display());
    }
    Ok(())
}

fn folder(architecture: Architecture) -> PathBuf {
    let own = cluster::cache().join("images");
    if architecture.is_own() {
        own
    } else {
        own.join(architecture.name())
    }
}

fn build(
    components: &[Component],
    architecture: Architecture,
    out: &Path,
    progress: &Progress,
) -> anyhow::Result<Vec<Archive>> {
    let folder = compile(components, architecture)?;
    progress.say("the programs are built");
    components
        .iter()
        .map(|component| {
            let built = archive(
                &Image {
                    name: &component.image(),
                    binary: &folder.join(component.program()),
                    program: component.program(),
                    user: NONROOT,
                    architecture,
                },
                out,
            )?;
            let size = built.path.metadata()?.len();
            progress.say(&format!(
                "{}: {} MB, {}",
                built.name,
                size / 1_000_000,
                built.id
            ));
            Ok(built)
        })
        .collect()
}

/// Compiles the programs with the C library linked in. A target is named, although it is the host's,
/// because procedural macros, which are shared libraries, must be built without that flag.
fn compile(components: &[Component], architecture: Architecture) -> anyhow::Result<PathBuf> {
    if !cfg!(target_os = "linux") {
        bail!(
            "images are built from this machine's programs, on Linux; elsewhere use the Dockerfile"
        );
    }
    if components.contains(&Component::Collector) {
        // Without the BPF programs it would compile, too, but measure nothing.
        let status = Command::new("bash")
            .arg(generate::root().join("hack/setup/bpf.sh"))
            .status()
            .context("cannot run bash")?;
        if !status.success() {
            bail!("hack/setup/bpf.sh ended with {status}");
        }
    }
    let mut command = cargo(&["build", "--release"]);
    if architecture.is_own() {
        let mut flags = env::var("RUSTFLAGS").unwrap_or_default();
        flags.push_str(" -C target-feature=+crt-static");
        command
            .args(["--target", architecture.target()])
            .env("RUSTFLAGS", flags.trim());
    } else {
        architecture.cross(&mut command)?;
    }
    for component in components {
        command.arg(format!("--package=ebpf-scaler-{}", component.program()));
    }
    let status = command
        .current_dir(generate::root())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build ended with {status}");
    }
    let folder = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| generate::root().join("target"), PathBuf::from);
    Ok(folder.join(architecture.target()).join("release"))
}
