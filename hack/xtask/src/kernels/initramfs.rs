//! Makes the archive that a kernel unpacks as its first file system: programs with the libraries they need, in the
//! "newc" format of cpio. It runs nothing but `ldd` and `readelf`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::architecture::below;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const DEVICE: u32 = 0o020_600;

/// An archive that is being written.
pub struct Initramfs<W> {
    to: W,
    /// Where copies are taken from, as if it were this machine's root directory.
    root: PathBuf,
    inode: u32,
    there: BTreeSet<PathBuf>,
}

impl<W: Write> Initramfs<W> {
    /// With the directories that are mounted on, and a console for the first process.
    pub fn new(to: W, root: &Path) -> anyhow::Result<Self> {
        let mut new = Self {
            to,
            root: root.to_owned(),
            inode: 0,
            there: BTreeSet::new(),
        };
        for directory in ["dev", "proc", "sys", "tmp", "run", "bin", "root", "var/log"] {
            new.directory(Path::new(directory))?;
        }
        new.entry("dev/console", DEVICE, (5, 1), &[])?;
        Ok(new)
    }

    /// A file of these bytes.
    pub fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
        let path = path.trim_start_matches('/');
        if !self.there.insert(path.into()) {
            return Ok(());
        }
        if let Some(parent) = Path::new(path).parent() {
            self.directory(parent)?;
        }
        self.entry(path, FILE | mode, (0, 0), bytes)
    }

    /// A copy of a file below the root, in its place, and for a program or library those that it needs.
    pub fn copy(&mut self, path: &Path) -> anyhow::Result<()> {
        self.copy_to(path, &path.to_string_lossy())
    }

    /// The same in another place.
    pub fn copy_to(&mut self, path: &Path, to: &str) -> anyhow::Result<()> {
        let from = below(&self.root, path);
        if !self.bring(&from, to)? {
            return Ok(());
        }
        if self.root == Path::new("/") {
            for library in libraries(&from)? {
                self.bring(&library, &library.to_string_lossy())?;
            }
        } else {
            for library in foreign_libraries(&self.root, &from)? {
                self.copy(&library)?;
            }
        }
        Ok(())
    }

    /// A directory with all that is in it.
    pub fn copy_all(&mut self, directory: &Path) -> anyhow::Result<()> {
        let from = below(&self.root, directory);
        for entry in fs::read_dir(&from).with_context(|| format!("no {}", from.display()))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            if entry.path().is_dir() {
                self.copy_all(&path)?;
            } else {
                self.copy(&path)?;
            }
        }
        Ok(())
    }

    /// A copy of a file of this machine: whether it may need libraries.
    pub fn bring(&mut self, from: &Path, to: &str) -> anyhow::Result<bool> {
        if self.there.contains(Path::new(to.trim_start_matches('/'))) {
            return Ok(false);
        }
        let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mode = fs::metadata(from)?.permissions().mode() & 0o777;
        self.file(to, mode, &bytes)?;
        Ok(bytes.starts_with(b"\x7fELF"))
    }

    /// Ends the archive.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.to.flush()?;
        Ok(())
    }

    fn directory(&mut self, path: &Path) -> anyhow::Result<()> {
        if path.as_os_str().is_empty() || !self.there.insert(path.into()) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        let name = path.to_string_lossy().into_owned();
        self.entry(&name, DIRECTORY, (0, 0), &[])
    }

    /// The format is in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        bytes: &[u8],
    ) -> anyhow::Result<()> {
        self.inode += 1;
        let size = u32::try_from(bytes.len()).with_context(|| format!("{name} is too large"))?;
        let fields = [
            self.inode,
            mode,
            0, // user
            0, // group
            1, // links
            0, // time
            size,
            0,
            0, // the device that it lies on
            device.0,
            device.1,
            u32::try_from(name.len() + 1)?,
            0, // no checksum
        ];
        let mut header = b"070701".to_vec();
        for field in fields {
            write!(header, "{field:08x}")?;
        }
        header.extend_from_slice(name.as_bytes());
        header.push(0);
        padded(&mut self.to, &header)?;
        padded(&mut self.to, bytes)?;
        Ok(())
    }
}

fn padded(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.write_all(&[0; 3][..bytes.len().next_multiple_of(4) - bytes.len()])
}

/// The shared libraries that a program is started with; none for a static one.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("not found") {
        bail!("{}: a library is missing: {text}", program.display());
    }
    Ok(text
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(PathBuf::from)
        .collect())
}

/// What a program or library of another architecture asks for: its loader and the libraries that it names, as paths
/// below the root.
fn foreign_libraries(root: &Path, program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("readelf")
        .args(["--wide", "--dynamic", "--program-headers"])
        .arg(program)
        .output()
        .context("cannot run readelf")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let bracketed = |line: &str, before: &str| {
        let (_, rest) = line.split_once(before)?;
        Some(rest.split_once(']')?.0.to_owned())
    };
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(loader) = bracketed(line, "program interpreter: ") {
            found.push(PathBuf::from(loader));
        } else if let Some(name) = bracketed(line, "Shared library: [") {
            found.push(library(root, &name).with_context(|| {
                format!("{} needs {name}, which is missing", program.display())
            })?);
        }
    }
    Ok(found)
}

/// A library's path below a root of Debian's layout with one architecture.
fn library(root: &Path, name: &str) -> Option<PathBuf> {
    ["/lib", "/usr/lib"].into_iter().find_map(|base| {
        let entries = fs::read_dir(below(root, Path::new(base))).ok()?.flatten();
        entries
            .map(|entry| Path::new(base).join(entry.file_name()).join(name))
            .find(|path| path.parent().is_some_and(is_multiarch) && below(root, path).is_file())
    })
}

fn is_multiarch(directory: &Path) -> bool {
    directory.to_string_lossy().ends_with("-linux-gnu")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use super::*;

    #[test]
    fn parts_begin_at_multiples_of_four_and_directories_come_first() {
        let mut archive = Vec::new();
        let mut initramfs = Initramfs::new(&mut archive, Path::new("/")).unwrap();
        initramfs.file("/etc/some/name", 0o644, b"hello").unwrap();
        initramfs.file("/etc/some/name", 0o644, b"twice").unwrap();
        initramfs.finish().unwrap();
        let (mut at, mut names) = (0, Vec::new());
        while at < archive.len() {
            let field = |n: usize| {
                let begin = at + 6 + n * 8;
                let text = std::str::from_utf8(&archive[begin..begin + 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&archive[at..at + 6], b"070701");
            let (size, length) = (field(6), field(11));
            let name = &archive[at + 110..at + 110 + length - 1];
            names.push(String::from_utf8_lossy(name).into_owned());
            let bytes = (at + 110 + length).next_multiple_of(4);
            if names.last().unwrap() == "etc/some/name" {
                assert_eq!(&archive[bytes..bytes + size], b"hello");
            }
            at = (bytes + size).next_multiple_of(4);
        }
        let end = [
            "dev/console",
            "etc",
            "etc/some",
            "etc/some/name",
            "TRAILER!!!",
        ];
        assert_eq!(names[names.len() - end.len()..], end);
    }
}
