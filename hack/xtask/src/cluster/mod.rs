//! Test clusters: `cargo xtask cluster up|down|status|kubeconfig`, and [`Cluster`] for other tasks.
//! What a provider does lies in its own module.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, bail};

mod addons;
mod cgroup;
mod control_plane;
mod existing;
mod journal;
mod kind;
mod network;
mod node;
mod pki;
mod process;
mod sandbox;
mod source;
mod state;

use crate::image::Archive;
use state::{Lock, Record};
pub use state::{Provider, cache};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Make a cluster, or find the one that is there, and wait until it is ready
    Up(UpOptions),
    /// Remove a cluster and everything it put on this machine, also after a crash
    Down(Name),
    /// Tell what runs and where
    Status(Name),
    /// Print the path of the cluster's kubeconfig
    Kubeconfig(Name),
}

#[derive(clap::Args)]
struct Name {
    /// The cluster's name
    #[arg(long, default_value = "dev")]
    name: String,
}

/// What `up` makes.
#[derive(clap::Args, Clone, Debug)]
pub struct UpOptions {
    /// The cluster's name
    #[arg(long, default_value = "dev")]
    pub name: String,
    /// How it is made
    #[arg(long, value_enum, default_value = "auto")]
    pub provider: Provider,
    /// How many nodes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    pub nodes: u8,
    /// Consent to the use of a cluster that is not ours (provider existing)
    #[arg(long)]
    pub yes: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Verb::Up(options) => {
            let cluster = Cluster::up(&options)?;
            println!("{}", cluster.kubeconfig().display());
            Ok(())
        }
        Verb::Down(Name { name }) => Cluster::down(&name),
        Verb::Status(Name { name }) => status(&name),
        Verb::Kubeconfig(Name { name }) => {
            println!("{}", Cluster::open(&name)?.kubeconfig().display());
            Ok(())
        }
    }
}

/// A cluster that is up.
pub struct Cluster {
    record: Record,
}

impl Cluster {
    /// Makes a cluster, or returns the one of that name if it is whole.
    pub fn up(options: &UpOptions) -> anyhow::Result<Self> {
        state::check_name(&options.name)?;
        let _lock = Lock::take(&options.name)?;
        let progress = Progress::new(&format!("cluster {}", options.name));
        if let Some(record) = Record::load(&options.name)? {
            let cluster = Self { record };
            if cluster.is_healthy() {
                let is_ours = cluster.record.provider != Provider::Existing;
                if is_ours && cluster.record.nodes != options.nodes {
                    bail!(
                        "cluster {} has {} nodes; take it down first",
                        options.name,
                        cluster.record.nodes
                    );
                }
                progress.say("is up already");
                return Ok(cluster);
            }
            progress.say("is broken or half made: it is made anew");
            remove(&options.name)?;
        }
        let provider = match options.provider {
            Provider::Auto => choose()?,
            given => given,
        };
        let cluster = match provider {
            Provider::Source | Provider::Auto => {
                source::up(&options.name, options.nodes, &progress)?
            }
            Provider::Kind => kind::up(&options.name, options.nodes, &progress)?,
            Provider::Existing => existing::up(&options.name, options.yes, &progress)?,
        };
        progress.say("is up");
        Ok(cluster)
    }

    /// The cluster of that name; an error if `up` has not made it.
    pub fn open(name: &str) -> anyhow::Result<Self> {
        state::check_name(name)?;
        match Record::load(name)? {
            Some(record) if record.ready => Ok(Self { record }),
            Some(_) => {
                bail!("cluster {name} is half made: run `cargo xtask cluster up --name {name}`")
            }
            None => bail!("there is no cluster {name}: run `cargo xtask cluster up --name {name}`"),
        }
    }

    /// Removes a cluster and everything it made. One that is not there is no error.
    pub fn down(name: &str) -> anyhow::Result<()> {
        state::check_name(name)?;
        let _lock = Lock::take(name)?;
        let folder = state::folder(name);
        if !folder.exists() {
            println!("there is no cluster {name}");
            return Ok(());
        }
        let progress = Progress::new(&format!("cluster {name}"));
        remove(name)?;
        progress.say("is down");
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// The path of its kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.record.kubeconfig
    }

    /// A `kubectl` that talks to it.
    pub fn kubectl(&self) -> Command {
        let ours = cache().join("kubernetes/bin/kubectl");
        let program = if ours.exists() {
            ours
        } else {
            PathBuf::from("kubectl")
        };
        let mut command = Command::new(program);
        command.arg("--kubeconfig").arg(self.kubeconfig());
        process::ends_with_us(&mut command);
        command
    }

    /// Puts an image onto every node, unless the very same is there already. Returns what was done.
    pub fn load_image(&self, image: &Archive) -> anyhow::Result<String> {
        let _lock = Lock::take(self.name())?;
        let mut record = Record::load(self.name())?.unwrap_or_else(|| self.record.clone());
        if record.images.get(&image.name) == Some(&image.id) {
            return Ok(format!("{} is unchanged in {}", image.name, self.name()));
        }
        match record.provider {
            Provider::Source | Provider::Auto => source::load(&record, &image.path),
            Provider::Kind => kind::load(&record.name, &image.path),
            Provider::Existing => {
                return Ok(existing::explain_images(&image.name, &image.path));
            }
        }
        .with_context(|| format!("cannot load {}", image.name))?;
        record.images.insert(image.name.clone(), image.id.clone());
        record.save()?;
        Ok(format!("{} is loaded into {}", image.name, self.name()))
    }

    fn is_healthy(&self) -> bool {
        let answers = || process::output(self.kubectl().args(["get", "--raw=/readyz"])).is_ok();
        match self.record.provider {
            Provider::Source => self.record.ready && source::is_whole(&self.record) && answers(),
            _ => self.record.ready && answers(),
        }
    }
}

/// Removes everything that a cluster made. Without a record there is still the journal: an earlier
/// removal may have ended in the middle.
fn remove(name: &str) -> anyhow::Result<()> {
    let folder = state::folder(name);
    state::journal(name).undo()?;
    if Record::load(name)?.is_some_and(|record| record.provider == Provider::Kind) {
        kind::down(name)?;
    }
    state::remove_folder(&folder)
}

/// What is best here.
fn choose() -> anyhow::Result<Provider> {
    if kind::has_docker() {
        return Ok(Provider::Kind);
    }
    if cfg!(target_os = "linux") && crate::steps::is_root() {
        return Ok(Provider::Source);
    }
    bail!(
        "no way to make a cluster here: start docker (then kind makes it) or be root on Linux \
         (then it is built from source)"
    )
}

fn status(name: &str) -> anyhow::Result<()> {
    state::check_name(name)?;
    let Some(record) = Record::load(name)? else {
        bail!("there is no cluster {name}");
    };
    let cluster = Cluster { record };
    let health = if cluster.is_healthy() { "up" } else { "broken" };
    println!(
        "cluster {name}: {health}, provider {:?}",
        cluster.record.provider
    );
    println!("kubeconfig {}", cluster.kubeconfig().display());
    for (what, process) in cluster.record.journal().processes() {
        let state = if process.is_running() {
            "running"
        } else {
            "ENDED"
        };
        println!("  {state}  {:>8}  {what}", process.pid);
    }
    Ok(())
}

/// Lines that tell how far something is, with the time since its start.
pub struct Progress {
    title: String,
    begun: Instant,
}

impl Progress {
    pub fn new(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            begun: Instant::now(),
        }
    }

    /// On standard error: standard output is for results such as the kubeconfig's path.
    pub fn say(&self, what: &str) {
        eprintln!(
            "[{:5.1} s] {}: {what}",
            self.begun.elapsed().as_secs_f64(),
            self.title
        );
    }
}
