//! Tells which cgroup directories come and go below kubepods: inotify for speed, rescans for certainty.
//! Never holds more directories than its bound; what does not fit is counted.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};

/// A directory that came or went; paths are relative to kubepods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A cgroup exists.
    Added {
        /// Relative path.
        path: String,
        /// The kernel's cgroup id, which is the directory's inode number.
        id: u64,
    },
    /// A cgroup is gone.
    Removed {
        /// Relative path.
        path: String,
        /// Its former id.
        id: u64,
    },
}

/// What the watcher could not do, cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Misses {
    /// The kernel dropped events; each was followed by a rescan.
    pub overflows: u64,
    /// Directories without a watch, found by rescans only.
    pub unwatched: u64,
    /// Directories beyond the bound, or with names that are not UTF-8.
    pub ignored: u64,
}

#[derive(Debug)]
struct Known {
    id: u64,
    watch: Option<WatchDescriptor>,
}

/// Follows the directories below a root.
#[derive(Debug)]
pub struct Watcher {
    root: PathBuf,
    inotify: Inotify,
    known: BTreeMap<String, Known>,
    by_watch: HashMap<WatchDescriptor, String>,
    max: usize,
    misses: Misses,
    // One read takes many events; names are short, NAME_MAX is the kernel's bound for one.
    buffer: Vec<u8>,
}

impl AsRawFd for Watcher {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_raw_fd()
    }
}

impl Watcher {
    /// Watches `root`; directories that exist already are reported by the first [`Watcher::rescan`].
    pub fn new(root: &Path, max_directories: usize) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let mut watcher = Self {
            root: root.to_owned(),
            inotify,
            known: BTreeMap::new(),
            by_watch: HashMap::new(),
            max: max_directories,
            misses: Misses::default(),
            buffer: vec![0; 16 * 1024],
        };
        let watch = watcher.inotify.watches().add(root, mask())?;
        watcher.by_watch.insert(watch, String::new());
        Ok(watcher)
    }

    /// What was missed so far.
    pub fn misses(&self) -> Misses {
        self.misses
    }

    /// How many directories are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether no directory is known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Takes the events that are there, without waiting; appends changes in the order they happened.
    pub fn poll(&mut self, changes: &mut Vec<Change>) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.drain(&mut buffer, changes);
        self.buffer = buffer;
        if result? {
            self.misses.overflows += 1;
            self.rescan(changes);
        }
        Ok(())
    }

    /// Reads until nothing is left; true if the kernel dropped events.
    fn drain(&mut self, buffer: &mut [u8], changes: &mut Vec<Change>) -> io::Result<bool> {
        let mut overflow = false;
        loop {
            let events: Vec<_> = match self.inotify.read_events(buffer) {
                Ok(events) => events.map(|e| e.to_owned()).collect(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(overflow),
                Err(error) => return Err(error),
            };
            if events.is_empty() {
                return Ok(overflow);
            }
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    overflow = true;
                } else if event.mask.contains(EventMask::IGNORED) {
                    self.by_watch.remove(&event.wd);
                } else if event.mask.contains(EventMask::ISDIR) {
                    let Some(parent) = self.by_watch.get(&event.wd) else {
                        continue;
                    };
                    let Some(name) = event.name.as_deref().and_then(|n| n.to_str()) else {
                        self.misses.ignored += 1;
                        continue;
                    };
                    let path = join(parent, name);
                    if event.mask.contains(EventMask::CREATE) {
                        self.found(path, changes);
                    } else if event.mask.contains(EventMask::DELETE) {
                        self.lost(&path, changes);
                    }
                }
            }
        }
    }

    /// Compares what is known with what is there.
    pub fn rescan(&mut self, changes: &mut Vec<Change>) {
        let gone: Vec<String> = self
            .known
            .iter()
            .filter(|(path, known)| inode(&self.root.join(path)) != Some(known.id))
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            self.lost(&path, changes);
        }
        self.children("", changes);
    }

    /// Reports the children of a directory, and theirs.
    fn children(&mut self, parent: &str, changes: &mut Vec<Change>) {
        let Ok(entries) = std::fs::read_dir(self.root.join(parent)) else {
            // Gone since: its removal is an event of its own.
            return;
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            match entry.file_name().to_str() {
                Some(name) => self.found(join(parent, name), changes),
                None => self.misses.ignored += 1,
            }
        }
    }

    fn found(&mut self, path: String, changes: &mut Vec<Change>) {
        let full = self.root.join(&path);
        let Some(id) = inode(&full) else {
            return;
        };
        match self.known.get(&path) {
            Some(known) if known.id == id => {}
            // Another directory took the name before its removal was read.
            Some(_) => {
                self.lost(&path, changes);
                self.insert(path.clone(), &full, id, changes);
            }
            None => self.insert(path.clone(), &full, id, changes),
        }
        // The watch came after the directory, so children may have been made in between.
        if self.known.contains_key(&path) {
            self.children(&path, changes);
        }
    }

    fn insert(&mut self, path: String, full: &Path, id: u64, changes: &mut Vec<Change>) {
        if self.known.len() >= self.max {
            self.misses.ignored += 1;
            return;
        }
        let watch = self.inotify.watches().add(full, mask()).ok();
        match &watch {
            Some(watch) => {
                self.by_watch.insert(watch.clone(), path.clone());
            }
            None => self.misses.unwatched += 1,
        }
        self.known.insert(path.clone(), Known { id, watch });
        changes.push(Change::Added { path, id });
    }

    /// Reports a directory as gone, after everything below it.
    fn lost(&mut self, path: &str, changes: &mut Vec<Change>) {
        let below = format!("{path}/");
        let children: Vec<String> = self
            .known
            .range(below.clone()..)
            .take_while(|(p, _)| p.starts_with(&below))
            .map(|(p, _)| p.clone())
            .collect();
        for path in children.into_iter().rev().chain([path.to_owned()]) {
            if let Some(known) = self.known.remove(&path) {
                if let Some(watch) = known.watch {
                    self.by_watch.remove(&watch);
                    // The kernel has removed it with the directory, unless another one took the name.
                    let _ = self.inotify.watches().remove(watch);
                }
                changes.push(Change::Removed { path, id: known.id });
            }
        }
    }
}

fn mask() -> WatchMask {
    WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR | WatchMask::DONT_FOLLOW
}

fn inode(path: &Path) -> Option<u64> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    metadata.is_dir().then(|| metadata.ino())
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir, create_dir_all, remove_dir};

    fn polled(watcher: &mut Watcher) -> Vec<Change> {
        let mut changes = Vec::new();
        watcher.poll(&mut changes).unwrap();
        changes
    }

    fn paths(changes: &[Change]) -> Vec<String> {
        changes
            .iter()
            .map(|change| match change {
                Change::Added { path, .. } => format!("+{path}"),
                Change::Removed { path, .. } => format!("-{path}"),
            })
            .collect()
    }

    #[test]
    fn what_exists_is_found_by_the_first_scan_and_only_once() {
        let root = tempfile::tempdir().unwrap();
        create_dir_all(root.path().join("burstable/pod/c")).unwrap();
        let mut watcher = Watcher::new(root.path(), 100).unwrap();
        let mut changes = Vec::new();
        watcher.rescan(&mut changes);
        assert_eq!(
            paths(&changes),
            ["+burstable", "+burstable/pod", "+burstable/pod/c"]
        );
        changes.clear();
        watcher.rescan(&mut changes);
        assert_eq!(changes, []);
        assert_eq!(polled(&mut watcher), []);
    }

    #[test]
    fn a_tree_made_at_once_is_reported_with_its_inodes_and_its_end() {
        let root = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new(root.path(), 100).unwrap();
        let deep = root.path().join("a/b/c");
        create_dir_all(&deep).unwrap();
        let added = polled(&mut watcher);
        assert_eq!(paths(&added), ["+a", "+a/b", "+a/b/c"]);
        let id = inode(&deep).unwrap();
        assert!(added.contains(&Change::Added {
            path: "a/b/c".into(),
            id
        }));

        remove_dir(&deep).unwrap();
        assert_eq!(
            polled(&mut watcher),
            [Change::Removed {
                path: "a/b/c".into(),
                id
            }]
        );
        std::fs::remove_dir_all(root.path().join("a")).unwrap();
        assert_eq!(paths(&polled(&mut watcher)), ["-a/b", "-a"]);
        assert!(watcher.is_empty());
    }

    #[test]
    fn a_name_used_again_is_another_cgroup() {
        let root = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new(root.path(), 100).unwrap();
        create_dir(root.path().join("a")).unwrap();
        let first = polled(&mut watcher);
        // Keeps the inode number from being used again.
        let keep = root.path().join("keep");
        remove_dir(root.path().join("a")).unwrap();
        create_dir(&keep).unwrap();
        create_dir(root.path().join("a")).unwrap();
        let then = polled(&mut watcher);
        assert_eq!(first.len(), 1);
        let last = then.iter().rev().find_map(|c| match c {
            Change::Added { path, id } if path == "a" => Some(*id),
            _ => None,
        });
        assert_eq!(last, inode(&root.path().join("a")));
        assert_eq!(watcher.len(), 2);
    }

    #[test]
    fn a_rescan_finds_what_events_missed() {
        let root = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new(root.path(), 100).unwrap();
        create_dir_all(root.path().join("a/b")).unwrap();
        let mut changes = Vec::new();
        watcher.rescan(&mut changes);
        remove_dir(root.path().join("a/b")).unwrap();
        remove_dir(root.path().join("a")).unwrap();
        watcher.rescan(&mut changes);
        assert_eq!(paths(&changes), ["+a", "+a/b", "-a/b", "-a"]);
        assert_eq!(polled(&mut watcher), []);
    }

    #[test]
    fn the_bound_holds_and_is_counted() {
        let root = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new(root.path(), 3).unwrap();
        for i in 0..5 {
            create_dir(root.path().join(i.to_string())).unwrap();
        }
        assert_eq!(polled(&mut watcher).len(), 3);
        assert_eq!((watcher.len(), watcher.misses().ignored), (3, 2));
    }
}
