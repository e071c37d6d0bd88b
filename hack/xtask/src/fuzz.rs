//! Builds and runs the fuzz targets of hack/fuzz with libFuzzer, on the pinned stable compiler. What a run finds
//! interesting is kept in the cache; the committed corpus is only read.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::cluster::cache;
use crate::generate;
use crate::steps::{Steps, cargo};

/// Counters and comparisons that lead libFuzzer, and AddressSanitizer for the unsafe code. As cargo-fuzz has them.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address --cfg fuzzing";
/// A sanitizer needs the target to be named, so that build scripts go without.
const TARGET: &str = match () {
    () if cfg!(target_arch = "aarch64") => "aarch64-unknown-linux-gnu",
    () => "x86_64-unknown-linux-gnu",
};

#[derive(clap::Args)]
pub struct Args {
    /// How long to fuzz, all targets together
    #[arg(long, default_value_t = 300)]
    pub seconds: u64,
    /// Only these targets; may be repeated
    #[arg(long, value_name = "NAME")]
    pub target: Vec<String>,
    /// Begin with this random seed, other than 0
    #[arg(long)]
    pub seed: Option<u32>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut steps = Steps::new("fuzz");
    all(&mut steps, &args)?;
    steps.summary();
    Ok(())
}

/// Builds, then runs each target for its share of the time.
pub fn all(steps: &mut Steps, args: &Args) -> anyhow::Result<()> {
    let root = generate::root().join("hack/fuzz");
    let targets = targets(&root, &args.target)?;
    let build = cache().join("fuzz/target");
    steps.run(
        "build the fuzz targets",
        cargo(&["build", "--release", "--locked", "--target", TARGET])
            .current_dir(&root)
            .env("CARGO_TARGET_DIR", &build)
            // Sanitizers are not yet stable; the compiler is the pinned stable one all the same.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", FLAGS),
    )?;
    let seconds = (args.seconds / targets.len() as u64).max(1);
    steps.step("fuzz", || {
        for target in &targets {
            let program = build.join(TARGET).join("release").join(target);
            one(&program, target, &root, seconds, args.seed)?;
        }
        Ok(())
    })
}

/// The programs' names, which are those of their files.
fn targets(root: &Path, wanted: &[String]) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root.join("src/bin")).context("cannot list the fuzz targets")? {
        let path = entry?.path();
        all.extend(
            path.file_stem()
                .map(|name| name.to_string_lossy().into_owned()),
        );
    }
    all.sort();
    if let Some(unknown) = wanted.iter().find(|name| !all.contains(name)) {
        bail!("no target {unknown}; there are {}", all.join(", "));
    }
    if !wanted.is_empty() {
        all.retain(|name| wanted.contains(name));
    }
    Ok(all)
}

fn one(
    program: &Path,
    target: &str,
    root: &Path,
    seconds: u64,
    seed: Option<u32>,
) -> anyhow::Result<()> {
    let directory = |kind: &str| -> anyhow::Result<PathBuf> {
        let path = cache().join("fuzz").join(kind).join(target);
        fs::create_dir_all(&path)?;
        Ok(path)
    };
    let (found, corpus, logs) = (
        directory("findings")?,
        directory("corpus")?,
        directory("logs")?,
    );
    let log = logs.join("log");
    let mut command = Command::new(program);
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-artifact_prefix={}/", found.display()));
    command.arg(format!("-dict={}", root.join("dictionary.txt").display()));
    command.args([
        "-max_len=4096",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]);
    command.args(seed.map(|seed| format!("-seed={seed}")));
    let status = command
        .arg(&corpus)
        .arg(root.join("corpus").join(target))
        .stderr(fs::File::create(&log).context("cannot write the log")?)
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if !status.success() {
        let lines: Vec<&str> = text.lines().collect();
        println!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        bail!(
            "{target}: {status}; the input is in {}, the output in {}; when it is mended, add the input to \
             hack/fuzz/corpus/{target} and a test to the crate",
            found.display(),
            log.display()
        );
    }
    let figures = figures(&text);
    let figure = |name: &str| figures.get(name).copied().unwrap_or("?");
    println!(
        "    {target:20} {seconds} s, {} inputs ({} a second), {} new",
        figure("number_of_executed_units"),
        figure("average_exec_per_sec"),
        figure("new_units_added"),
    );
    Ok(())
}

/// libFuzzer's final statistics.
fn figures(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("stat::")?.split_once(':'))
        .map(|(name, value)| (name, value.trim()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_corpus_and_every_corpus_a_target() {
        let root = generate::root().join("hack/fuzz");
        let all = targets(&root, &[]).unwrap_or_default();
        assert!(all.len() >= 7, "{all:?}");
        let corpora = fs::read_dir(root.join("corpus"))
            .into_iter()
            .flatten()
            .flatten();
        let mut corpora: Vec<String> = corpora
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        corpora.sort();
        assert_eq!(all, corpora);
        assert!(targets(&root, &["nothing".to_owned()]).is_err());
    }
}
