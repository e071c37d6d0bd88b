//! The architectures that images are built for and whose kernels can be booted: what builds for them, what emulates
//! them, and where the programs for them come from. It starts nothing but the set-up of a compiler.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::cluster::cache;
use crate::generate;

/// By Debian's names.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    /// This machine's.
    pub fn own() -> anyhow::Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("this works on x86_64 and aarch64, not on {other}"),
        }
    }

    pub fn is_own(self) -> bool {
        Self::own().is_ok_and(|own| own == self)
    }

    /// Debian's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// What the compilers' names and directories of libraries begin with.
    pub fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        }
    }

    /// Rust's target.
    pub fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Qemu's program.
    pub fn emulator(self) -> &'static str {
        match self {
            Self::Amd64 => "qemu-system-x86_64",
            Self::Arm64 => "qemu-system-aarch64",
        }
    }

    /// Qemu's machine, where it has to be told.
    pub fn machine(self) -> &'static [&'static str] {
        match self {
            Self::Amd64 => &[],
            Self::Arm64 => &["-machine", "virt,gic-version=3"],
        }
    }

    /// The processor that is emulated.
    pub fn processor(self) -> &'static str {
        match self {
            // Emulated, string instructions go byte by byte.
            Self::Amd64 => "max,-erms,-fsrm",
            // With atomic instructions, which later ones have too, and without pointer authentication, which is slow
            // to emulate.
            Self::Arm64 => "cortex-a76",
        }
    }

    /// What the kernel is told of it.
    pub fn command_line(self) -> &'static str {
        match self {
            // Features 112, 297 and 580 are those string instructions.
            Self::Amd64 => "console=ttyS0 clearcpuid=112,297,580",
            Self::Arm64 => "console=ttyAMA0",
        }
    }

    /// Brings a compiler and the BPF object for it and has cargo use them. Programs are linked statically, so that they
    /// need nothing of the compiler's C library where they run.
    pub fn cross(self, command: &mut Command) -> anyhow::Result<()> {
        let rust = self.target().split('-').next().unwrap_or_default();
        for (script, argument) in [("cross.sh", self.name()), ("bpf.sh", rust)] {
            let status = Command::new(generate::root().join("hack/setup").join(script))
                .arg(argument)
                .status()
                .with_context(|| format!("cannot start hack/setup/{script}"))?;
            if !status.success() {
                bail!("hack/setup/{script} ended with {status}");
            }
        }
        let object = cache().join(format!("bpf/programs-{rust}.o"));
        command.env("EBPF_SCALER_BPF_OBJECT", object);
        let target = self.target();
        let variable = target.replace('-', "_").to_uppercase();
        command
            .arg(format!("--target={target}"))
            .env(
                format!("CARGO_TARGET_{variable}_LINKER"),
                format!("{}-gcc", self.triple()),
            )
            .env(
                format!("CARGO_TARGET_{variable}_RUSTFLAGS"),
                "-C target-feature=+crt-static",
            );
        Ok(())
    }

    /// Where what was fetched and built for it lies.
    pub fn directory(self) -> PathBuf {
        let all = cache().join("kernels");
        if self.is_own() {
            all
        } else {
            all.join(self.name())
        }
    }

    /// The tree that programs for it are taken from: this machine's own, or what hack/setup/kernels.sh has unpacked.
    pub fn root(self) -> PathBuf {
        if self.is_own() {
            "/".into()
        } else {
            self.directory().join("root")
        }
    }

    /// A program by its name: its path below [`root`](Self::root), with a leading slash.
    pub fn find(self, program: &str) -> anyhow::Result<PathBuf> {
        let path = std::env::var("PATH").unwrap_or_default();
        let own: Vec<&str> = path.split(':').filter(|_| self.is_own()).collect();
        let standard = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
        // What is only unpacked has no alternatives set up.
        let names = [program.to_owned(), format!("{program}-nft")];
        let places = names.iter().flat_map(|name| {
            own.iter()
                .chain(&standard)
                .map(move |directory| Path::new(directory).join(name))
        });
        let root = self.root();
        places
            .into_iter()
            .find(|path| below(&root, path).is_file())
            .with_context(|| {
                format!("{program} is not installed: run hack/setup/packages.sh or, for another architecture, kernels.sh")
            })
    }
}

/// Where a file of the machine that is booted lies on this one: links are followed as they would be there.
pub fn below(root: &Path, path: &Path) -> PathBuf {
    let mut found = root.join(path.strip_prefix("/").unwrap_or(path));
    // As many as the kernel follows.
    for _ in 0..40 {
        match found.read_link() {
            Ok(to) if to.is_absolute() => found = root.join(to.strip_prefix("/").unwrap_or(&to)),
            Ok(to) => found = found.parent().unwrap_or(root).join(to),
            Err(_) => break,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn absolute_links_stay_below_the_root() {
        let root = std::env::temp_dir().join(format!("ebst-root-{}", std::process::id()));
        std::fs::create_dir_all(root.join("bin")).unwrap();
        std::fs::write(root.join("bin/tool-1"), "").unwrap();
        symlink("tool-1", root.join("bin/tool")).unwrap();
        symlink("/bin/tool", root.join("bin/other")).unwrap();
        let found = below(&root, Path::new("/bin/other"));
        let none = below(&root, Path::new("/bin/none"));
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, root.join("bin/tool-1"));
        assert_eq!(none, root.join("bin/none"));
    }
}
