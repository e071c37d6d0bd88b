//! The processes of pods, and the files whose code they run, by /proc. It reads and never enters a process.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Directories below kubepods that are looked into: each pod's own, its containers', and some below.
const MAX_DIRECTORIES: usize = 65_536;
/// Of a process' mapped files the first so many are looked at.
const MAX_FILES: usize = 1024;
const OVERLAYFS: i64 = 0x794c_7630;

/// A file, whichever of the paths to it was taken. Containers of one image have one file below, which each sees on a
/// device of its own: so the device does not count where layers lie above each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    device: u64,
    inode: u64,
    size: u64,
    modified: i64,
}

impl FileId {
    /// The identity of an open file, if it is an ordinary one.
    pub fn of(file: &File) -> io::Result<Option<FileId>> {
        let metadata = file.metadata()?;
        // SAFETY: all zero is a valid value, and the call fills it.
        let mut of_system: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open, the structure ours.
        if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut of_system) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let layered = of_system.f_type as i64 == OVERLAYFS;
        Ok(metadata.is_file().then(|| FileId {
            device: if layered { 0 } else { metadata.dev() },
            inode: metadata.ino(),
            size: metadata.len(),
            modified: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
        }))
    }
}

/// The processes in the cgroups below a directory that `wanted` picks by their path from there. Zeros stand for
/// processes that this PID namespace does not show.
pub fn below(root: &Path, wanted: impl Fn(&str) -> bool) -> BTreeSet<u32> {
    let mut processes = BTreeSet::new();
    let mut directories = vec![PathBuf::new()];
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        seen += 1;
        if seen > MAX_DIRECTORIES {
            break;
        }
        let here = root.join(&directory);
        if directory.to_str().is_some_and(&wanted)
            && let Ok(text) = fs::read_to_string(here.join("cgroup.procs"))
        {
            processes.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        let entries = fs::read_dir(&here).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.extend(below.map(|entry| directory.join(entry.file_name())));
    }
    processes
}

/// When a process was started, in ticks: with its number this names it.
pub fn started(process: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name may hold anything, also parentheses.
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The paths of the files whose code a process has mapped, as it sees them.
pub fn code(process: u32) -> io::Result<BTreeSet<String>> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    Ok(paths(&maps))
}

fn paths(maps: &str) -> BTreeSet<String> {
    let executable = maps.lines().filter_map(|line| {
        let mut fields = line.splitn(6, ' ').skip(1);
        let rights = fields.next()?;
        let path = fields.nth(3)?.trim_start();
        (rights.contains('x') && path.starts_with('/') && !path.ends_with(" (deleted)"))
            .then(|| path.to_owned())
    });
    executable.take(MAX_FILES).collect()
}

/// The file system as a process sees it.
pub fn root(process: u32) -> io::Result<File> {
    File::open(format!("/proc/{process}/root"))
}

/// Opens a file in the file system of a process. Links lead nowhere else than they lead that process.
pub fn open(root: &File, path: &str) -> io::Result<File> {
    let path = CString::new(Path::new(path).as_os_str().as_bytes())?;
    // SAFETY: all zero asks for nothing special.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    // Without waiting: it could have become a pipe.
    how.flags = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: the path ends with a zero, the structure has the length that is told.
    let opened = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    match i32::try_from(opened) {
        // SAFETY: a descriptor that was just made for us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_what_is_mapped_from_files_that_are_still_there() {
        let maps = "\
55d0c0000000-55d0c0001000 r--p 00000000 fe:00 123                        /usr/sbin/nginx
55d0c0001000-55d0c0002000 r-xp 00001000 fe:00 123                        /usr/sbin/nginx
7f0000000000-7f0000001000 r-xp 00000000 fe:00 124                        /usr/lib/with blank/libssl.so.3
7f0000001000-7f0000002000 r-xp 00000000 fe:00 125                        /usr/lib/old.so (deleted)
7f0000002000-7f0000003000 r-xp 00000000 00:00 0
7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0                          [vdso]
";
        let found: Vec<String> = paths(maps).into_iter().collect();
        assert_eq!(
            found,
            ["/usr/lib/with blank/libssl.so.3", "/usr/sbin/nginx"]
        );
    }

    #[test]
    fn this_process_runs_its_own_file() {
        let me = std::process::id();
        let exe = fs::read_link("/proc/self/exe").unwrap();
        let mapped = code(me).unwrap();
        assert!(mapped.contains(exe.to_str().unwrap()), "{mapped:?}");
        let opened = open(&root(me).unwrap(), exe.to_str().unwrap()).unwrap();
        let directly = File::open("/proc/self/exe").unwrap();
        let id = FileId::of(&opened).unwrap();
        assert!(id.is_some());
        assert_eq!(id, FileId::of(&directly).unwrap());
        assert!(started(me).is_some_and(|ticks| ticks > 0));
        assert_eq!(started(0), None);
    }

    #[test]
    fn what_is_no_file_has_no_identity() {
        let root = root(std::process::id()).unwrap();
        let directory = open(&root, "/").unwrap();
        assert_eq!(FileId::of(&directory).unwrap(), None);
        // A link that climbs out of its root stays inside.
        assert!(open(&root, "/proc/self/root/../../nothing-here").is_err());
    }
}
