//! Boots Debian's kernels in qemu and runs the kernel tests in them: the same programs that `cargo xtask test kernel`
//! runs, each test by itself, as root, on cgroup version 2 alone. What is not run is listed with its reason.

mod guest;
mod initramfs;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::architecture::{Architecture, below};
use crate::cluster::cache;
use crate::generate;
use crate::steps::cargo;
use guest::{Accelerator, Outcome, Report};
use initramfs::Initramfs;

/// What is tested when nothing is asked for: this is what docs/limits.md tells of.
const KERNELS: [&str; 3] = ["6.1", "6.12", "newest"];
/// The oldest kernel that can count requests; `agent::probes::FLOOR` is the same.
const FLOOR: &str = "5.17";
/// An emulated processor is slower by this: waits for a condition are longer, what is counted is the same.
const PATIENCE: &str = "10";
/// One test that takes longer, by the machine's own clock, has failed.
const LIMIT: Duration = Duration::from_secs(600);
/// Programs whose tests share out a processor's time and look at who got it: they run one at a time, after the others.
const ALONE: &str = "kernel_causes kernel_cost kernel_runqueue kernel_tls_cost kernel_waits";
/// What the tests call, beside busybox. The shell is not busybox's, which takes its own `ip` before any other.
const PROGRAMS: [&str; 14] = [
    "sh",
    "ip",
    "iptables",
    "nsenter",
    "flock",
    "nginx",
    "wrk",
    "h2load",
    "runqlat",
    "redis-server",
    "redis-benchmark",
    "setpriv",
    "openssl",
    "curl",
];
/// PostgreSQL refuses to run as root.
const USERS: &[u8] =
    b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\npostgres:x:70:70::/tmp:/bin/sh\n";
const GROUPS: &[u8] = b"root:x:0:\nnogroup:x:65534:\npostgres:x:70:\n";
const BUSYBOX: &str = "/bin/busybox";

#[derive(clap::Args)]
pub struct Args {
    /// 6.1, 6.12, newest, the beginning of another release in Debian, or a vmlinuz file; may be repeated
    #[arg(long, value_name = "KERNEL")]
    kernel: Vec<String>,
    /// Only tests whose `program::name` contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// Whose kernels and programs; the default is this machine's
    #[arg(long, value_enum, value_name = "ARCHITECTURE")]
    arch: Option<Architecture>,
}

/// A kernel to boot.
struct Kernel {
    name: String,
    image: PathBuf,
    /// Debian's package and its version.
    package: Option<String>,
    /// Has the modules, in `order`.
    modules: Option<PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    if !args
        .filter
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "_:".contains(c))
    {
        bail!("--filter: letters, digits, _ and : only");
    }
    let architecture = args.arch.map_or_else(Architecture::own, Ok)?;
    let tests = build(architecture)?;
    let kernels = fetch(architecture, &args.kernel)?;
    let mut reports = Vec::new();
    let mut accelerator = Accelerator::first(architecture);
    for kernel in &kernels {
        let begun = Instant::now();
        let package = kernel.package.as_deref().unwrap_or("a file");
        println!("\n==> kernels: {} ({package})", kernel.name);
        let archive = pack(architecture, kernel, &tests, &args.filter)?;
        let boot =
            |accelerator| guest::run(architecture, &kernel.image, &archive, accelerator, LIMIT);
        let mut report = boot(accelerator)?;
        if report.is_none() {
            println!("    KVM does not work here, so processors are emulated");
            accelerator = Accelerator::Emulation;
            report = boot(accelerator)?;
        }
        fs::remove_file(&archive)?;
        let report = report.context("the kernel did not boot")?;
        if let Some(why) = &report.ended_early {
            println!("    the machine ended early, {why}");
        }
        println!(
            "    {}: {:.0} s",
            report.release,
            begun.elapsed().as_secs_f64()
        );
        reports.push(report);
    }
    table(&reports)
}

/// The test programs without their debugging information, which would fill the machine's memory.
fn build(architecture: Architecture) -> anyhow::Result<Vec<PathBuf>> {
    println!("==> kernels: build the tests");
    let mut command = cargo(&["test", "--workspace", "--test=kernel_*", "--no-run"]);
    if !architecture.is_own() {
        architecture.cross(&mut command)?;
    }
    let output = command
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the kernel tests do not build");
    }
    let to = architecture.directory().join("tests");
    let strip = if architecture.is_own() {
        "strip".to_owned()
    } else {
        format!("{}-strip", architecture.triple())
    };
    let _ = fs::remove_dir_all(&to);
    fs::create_dir_all(&to)?;
    let mut tests = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let name = message["target"]["name"].as_str().unwrap_or_default();
        if let (Some(path), true) = (message["executable"].as_str(), name.starts_with("kernel_")) {
            let stripped = to.join(name);
            let status = Command::new(&strip)
                .args(["--strip-debug", "-o"])
                .arg(&stripped)
                .arg(path)
                .status()
                .with_context(|| format!("cannot start {strip}"))?;
            if !status.success() {
                bail!("strip {path} ended with {status}");
            }
            tests.push(stripped);
        }
    }
    if tests.is_empty() {
        bail!("cargo built no test whose name begins with kernel_");
    }
    Ok(tests)
}

/// Kernels by name from Debian, by path as they are.
fn fetch(architecture: Architecture, wanted: &[String]) -> anyhow::Result<Vec<Kernel>> {
    let wanted: Vec<&str> = match wanted {
        [] => KERNELS.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    let (files, names): (Vec<&str>, Vec<&str>) =
        wanted.iter().partition(|name| Path::new(name).is_file());
    let output = Command::new(generate::root().join("hack/setup/kernels.sh"))
        .arg(architecture.name())
        .args(&names)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start hack/setup/kernels.sh")?;
    if !output.status.success() {
        bail!("hack/setup/kernels.sh ended with {}", output.status);
    }
    let mut kernels = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let [name, directory, package] = line.splitn(3, '\t').collect::<Vec<_>>()[..] else {
            bail!("hack/setup/kernels.sh said: {line}");
        };
        let directory = Path::new(directory);
        kernels.push(Kernel {
            name: name.to_owned(),
            image: directory.join("vmlinuz"),
            package: Some(package.to_owned()),
            modules: Some(directory.join("modules")),
        });
    }
    kernels.extend(files.into_iter().map(|file| Kernel {
        name: file.to_owned(),
        image: file.into(),
        package: None,
        modules: None,
    }));
    Ok(kernels)
}

/// The machine's whole file system.
fn pack(
    architecture: Architecture,
    kernel: &Kernel,
    tests: &[PathBuf],
    filter: &str,
) -> anyhow::Result<PathBuf> {
    let path = cache().join(format!("kernels/initramfs-{}.cpio", std::process::id()));
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let root = architecture.root();
    let mut archive = Initramfs::new(BufWriter::new(file), &root)?;
    archive.file("init", 0o755, include_bytes!("init.sh"))?;
    let settings = format!(
        "FLOOR={FLOOR} FILTER={filter} LIMIT={} ALONE='{ALONE}'\nexport EBPF_SCALER_TEST_PATIENCE={PATIENCE}\n",
        LIMIT.as_secs()
    );
    archive.file("settings", 0o644, settings.as_bytes())?;
    archive.file("etc/passwd", 0o644, USERS)?;
    archive.file("etc/group", 0o644, GROUPS)?;
    // wrk asks for the port of "http".
    archive.file("etc/services", 0o644, b"http 80/tcp\n")?;
    archive.copy(Path::new(BUSYBOX))?;
    for program in PROGRAMS {
        archive.copy_to(&architecture.find(program)?, &format!("usr/sbin/{program}"))?;
    }
    // iptables finds its extensions by name when it runs.
    let extensions = format!("/usr/lib/{}/xtables", architecture.triple());
    archive.copy_all(Path::new(&extensions))?;
    postgresql(&mut archive, &root)?;
    for test in tests {
        let name = test.file_name().unwrap_or_default().to_string_lossy();
        let to = format!("tests/{name}");
        if architecture.is_own() {
            archive.copy_to(test, &to)?;
        } else {
            // They are linked statically.
            archive.bring(test, &to)?;
        }
    }
    match &kernel.modules {
        Some(modules) => {
            for entry in fs::read_dir(modules)? {
                let entry = entry?;
                let to = format!("modules/{}", entry.file_name().to_string_lossy());
                archive.bring(&entry.path(), &to)?;
            }
        }
        None => archive.file("modules/order", 0o644, b"")?,
    }
    archive.finish()?;
    Ok(path)
}

/// What of PostgreSQL a database takes that is made, used and forgotten. Its compiler, which is most of it, stays away.
fn postgresql(archive: &mut Initramfs<impl Write>, root: &Path) -> anyhow::Result<()> {
    let all = Path::new("/usr/lib/postgresql");
    let versions = fs::read_dir(below(root, all))
        .with_context(|| format!("PostgreSQL is not in {}", root.display()))?;
    let version = versions
        .flatten()
        .map(|entry| entry.file_name())
        .max()
        .context("PostgreSQL has no version")?;
    let own = all.join(&version);
    for program in ["initdb", "postgres"] {
        archive.copy(&own.join("bin").join(program))?;
    }
    archive.copy_to(&own.join("bin/pgbench"), "usr/sbin/pgbench")?;
    for library in ["dict_snowball.so", "plpgsql.so"] {
        archive.copy(&own.join("lib").join(library))?;
    }
    archive.copy_all(&Path::new("/usr/share/postgresql").join(&version))
}

/// A row per test, a column per kernel, and below it why something was not run.
fn table(reports: &[Report]) -> anyhow::Result<()> {
    let names: BTreeSet<&str> = reports
        .iter()
        .flat_map(|r| &r.ran)
        .map(|ran| ran.name.as_str())
        .collect();
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    println!("\n==> kernels: results");
    print!("    {:width$}", "");
    for report in reports {
        print!("  {}", report.release);
    }
    println!();
    let (mut reasons, mut failed) = (BTreeMap::<String, usize>::new(), 0);
    for name in names {
        print!("    {name:width$}");
        for report in reports {
            let found = report.ran.iter().find(|ran| ran.name == name);
            let word = match found.map(|ran| &ran.outcome) {
                Some(Outcome::Ok) => "ok",
                Some(Outcome::Failed(_)) => "FAILED",
                Some(Outcome::NotRun(reason)) => {
                    *reasons
                        .entry(format!("{}: {reason}", report.release))
                        .or_default() += 1;
                    "-"
                }
                // The machine ended before.
                None => "LOST",
            };
            failed += usize::from(word == "FAILED" || word == "LOST");
            print!("  {word:0$}", report.release.len());
        }
        println!();
    }
    for (reason, count) in reasons {
        println!("    -: not run on {reason} ({count} tests)");
    }
    let early = reports
        .iter()
        .filter(|report| report.ended_early.is_some())
        .count();
    if reports.iter().all(|report| report.ran.is_empty()) {
        bail!("no test has such a name");
    }
    if failed + early > 0 {
        bail!("{failed} failed; {early} kernels ended early");
    }
    Ok(())
}
