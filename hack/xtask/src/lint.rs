//! Runs every linter with warnings denied. Advisories need the network: without it that
//! check is left out, and the output says so.

use std::process::Command;

use crate::{
    generate,
    steps::{Steps, cargo, xtask},
};

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_: Args) -> anyhow::Result<()> {
    let root = generate::root();
    let programs = root.join("ebpf/programs");
    let mut steps = Steps::new("lint");
    steps.run("rustfmt", &mut cargo(&["fmt", "--all", "--check"]))?;
    steps.run(
        "rustfmt of the BPF programs",
        cargo(&["fmt", "--check"]).current_dir(&programs),
    )?;
    steps.run(
        "rustfmt of the fuzz targets",
        cargo(&["fmt", "--check"]).current_dir(root.join("hack/fuzz")),
    )?;
    steps.run(
        "clippy",
        &mut cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    steps.run("generated files", &mut xtask(&["generate", "--check"])?)?;
    steps.run(
        "shell syntax",
        Command::new("bash")
            .args([
                "-c",
                "for f in hack/setup/*.sh .ci/run; do bash -n \"$f\" || exit 1; done",
            ])
            .current_dir(&root),
    )?;
    steps.run(
        "licences and sources",
        &mut cargo(&[
            "deny",
            "--log-level=error",
            "check",
            "licenses",
            "bans",
            "sources",
        ]),
    )?;
    let fetched = cargo(&["deny", "--log-level=off", "fetch", "db"])
        .status()
        .is_ok_and(|status| status.success());
    if fetched {
        steps.run(
            "advisories",
            &mut cargo(&["deny", "--log-level=error", "check", "advisories"]),
        )?;
    } else {
        println!("\n==> lint: advisories NOT checked: their database cannot be reached from here");
    }
    steps.summary();
    Ok(())
}
