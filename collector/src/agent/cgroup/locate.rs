//! Finds the cgroup v2 tree and, in it, the kubepods directory of this agent's own kubelet. Several
//! kubelets can share one kernel; the one above the agent's own pod is the right one.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::path::{is_kubepods, pod_uid};

/// Deepest directory that is looked at: nested container engines put kubepods at up to six levels.
const MAX_DEPTH: usize = 10;
/// Directories looked at before the search gives up, for trees that somebody filled.
const MAX_DIRECTORIES: usize = 65_536;

/// Why the agent does not know which cgroups are its pods'. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cgroup v2 tree.
    #[error(
        "no cgroup v2 tree at {0} or {0}/unified: mount the node's /sys/fs/cgroup there, or set --cgroup-root"
    )]
    NoTree(PathBuf),
    /// The flag is wrong.
    #[error("--kubepods {0} is not a directory of the cgroup v2 tree")]
    NoSuchDirectory(PathBuf),
    /// The pod is not in the tree.
    #[error(
        "the agent's own pod {0} has no directory in the cgroup v2 tree {1}: the container runtime does not \
         join cgroup v2, or the tree is another node's; set --kubepods if neither is so"
    )]
    NoOwnPod(String, PathBuf),
    /// No kubepods at all.
    #[error("no kubepods directory in the cgroup v2 tree {0}: no kubelet runs pods here")]
    NoKubepods(PathBuf),
    /// More than one.
    #[error("several kubepods directories ({}): set --pod-uid or --kubepods", .0.join(", "))]
    Ambiguous(Vec<String>),
}

/// Where this node's pods are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubepods {
    /// The cgroup v2 directory under which all of the kubelet's pods are.
    pub dir: PathBuf,
    /// The same place in the v1 `cpu` hierarchy, where a hybrid node keeps CPU throttling.
    pub cpu_v1: Option<PathBuf>,
}

/// Finds kubepods below `root`, a mount of the node's /sys/fs/cgroup.
///
/// `kubepods` is taken as it is (relative to the v2 tree); otherwise `own_pod` decides; without either
/// there must be exactly one.
pub fn locate(
    root: &Path,
    own_pod: Option<&str>,
    kubepods: Option<&Path>,
) -> Result<Kubepods, Error> {
    let tree = v2_tree(root, is_cgroup2).ok_or_else(|| Error::NoTree(root.to_owned()))?;
    locate_in(root, &tree, own_pod, kubepods)
}

fn locate_in(
    root: &Path,
    tree: &Path,
    own_pod: Option<&str>,
    kubepods: Option<&Path>,
) -> Result<Kubepods, Error> {
    let relative = match (kubepods, own_pod) {
        (Some(path), _) => {
            let inside = path
                .components()
                .filter(|c| !matches!(c, Component::RootDir | Component::CurDir));
            let relative: PathBuf = inside.collect();
            let is_inside = relative
                .components()
                .all(|c| matches!(c, Component::Normal(_)));
            if !is_inside || !tree.join(&relative).is_dir() {
                return Err(Error::NoSuchDirectory(path.to_owned()));
            }
            relative
        }
        (None, Some(uid)) => of_pod(tree, uid)?,
        (None, None) => the_only(tree)?,
    };
    let cpu_v1 = ["cpu", "cpu,cpuacct"]
        .into_iter()
        .map(|controller| root.join(controller).join(&relative))
        .find(|dir| tree != root && dir.is_dir());
    Ok(Kubepods {
        dir: tree.join(relative),
        cpu_v1,
    })
}

/// The root itself on a unified node, its `unified` directory on a hybrid one.
fn v2_tree(root: &Path, is_cgroup2: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    [root.to_owned(), root.join("unified")]
        .into_iter()
        .find(|dir| is_cgroup2(dir))
}

fn is_cgroup2(dir: &Path) -> bool {
    let Ok(path) = CString::new(dir.as_os_str().as_bytes()) else {
        return false;
    };
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `path` is a valid C string and `stat` is writable memory of the right size for the call.
    if unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: statfs returned 0, so it filled the structure.
    let stat = unsafe { stat.assume_init() };
    stat.f_type == libc::CGROUP2_SUPER_MAGIC
}

/// The nearest kubepods above the directory of the pod `uid`.
fn of_pod(tree: &Path, uid: &str) -> Result<PathBuf, Error> {
    let mut found = None;
    walk(tree, &mut |path, name| {
        if found.is_none() && pod_uid(name).is_some_and(|u| u == uid) {
            found = path
                .ancestors()
                .skip(1)
                .find(|a| {
                    a.file_name()
                        .is_some_and(|n| is_kubepods(&n.to_string_lossy()))
                })
                .map(Path::to_owned);
        }
        found.is_none()
    });
    found.ok_or_else(|| Error::NoOwnPod(uid.to_owned(), tree.to_owned()))
}

fn the_only(tree: &Path) -> Result<PathBuf, Error> {
    let mut all = Vec::new();
    walk(tree, &mut |path, name| {
        let found = is_kubepods(name);
        if found {
            all.push(path.to_owned());
        }
        // What is inside one belongs to its pods.
        !found
    });
    match all.len() {
        0 => Err(Error::NoKubepods(tree.to_owned())),
        1 => Ok(all.remove(0)),
        _ => Err(Error::Ambiguous(
            all.iter().map(|p| p.display().to_string()).collect(),
        )),
    }
}

/// Calls `enter(relative path, name)` for directories, breadth first; it says whether to look inside.
fn walk(tree: &Path, enter: &mut dyn FnMut(&Path, &str) -> bool) {
    let mut queue = std::collections::VecDeque::from([(PathBuf::new(), 0)]);
    let mut seen = 0;
    while let Some((relative, depth)) = queue.pop_front() {
        let Ok(entries) = std::fs::read_dir(tree.join(&relative)) else {
            continue;
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            seen += 1;
            if seen > MAX_DIRECTORIES {
                tracing::warn!(MAX_DIRECTORIES, "gave up the search for kubepods");
                return;
            }
            let path = relative.join(entry.file_name());
            if enter(&path, &entry.file_name().to_string_lossy()) && depth + 1 < MAX_DEPTH {
                queue.push_back((path, depth + 1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const OWN: &str = "7a0bd1f5-3c65-4a25-9d1c-0a1b2c3d4e5f";
    const OTHER: &str = "00000000-3c65-4a25-9d1c-0a1b2c3d4e5f";

    fn tree(dirs: &[String]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for dir in dirs {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        root
    }

    fn find(root: &TempDir, own: Option<&str>, flag: Option<&str>) -> Result<PathBuf, Error> {
        let found = locate_in(root.path(), root.path(), own, flag.map(Path::new))?;
        Ok(found.dir.strip_prefix(root.path()).unwrap().to_owned())
    }

    #[test]
    fn each_of_several_kubelets_finds_its_own_pods() {
        let root = tree(&[
            format!("node-a/kubepods/burstable/pod{OTHER}/c"),
            format!("node-b/kubepods/besteffort/pod{OWN}/c"),
            "kubepods/burstable".into(),
        ]);
        assert_eq!(
            find(&root, Some(OWN), None).unwrap(),
            Path::new("node-b/kubepods")
        );
        assert_eq!(
            find(&root, Some(OTHER), None).unwrap(),
            Path::new("node-a/kubepods")
        );
    }

    #[test]
    fn systemd_slices_with_and_without_a_prefix() {
        let pod = OWN.replace('-', "_");
        let root = tree(&[format!(
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{pod}.slice"
        )]);
        let expected = Path::new("kubelet.slice/kubelet-kubepods.slice");
        assert_eq!(find(&root, Some(OWN), None).unwrap(), expected);
    }

    #[test]
    fn a_pod_that_is_not_there_is_an_error_that_names_it() {
        let root = tree(&["kubepods/burstable".into()]);
        let error = find(&root, Some(OWN), None).unwrap_err();
        assert!(error.to_string().contains(OWN), "{error}");
    }

    #[test]
    fn without_a_pod_the_only_kubepods_is_taken_and_two_are_refused() {
        let one = tree(&[format!("kubepods.slice/pod{OWN}/kubepods")]);
        assert_eq!(find(&one, None, None).unwrap(), Path::new("kubepods.slice"));
        let two = tree(&["a/kubepods".into(), "b/kubepods".into()]);
        assert!(matches!(find(&two, None, None), Err(Error::Ambiguous(all)) if all.len() == 2));
        let none = tree(&["system.slice".into()]);
        assert!(matches!(find(&none, None, None), Err(Error::NoKubepods(_))));
    }

    #[test]
    fn the_flag_decides_and_cannot_leave_the_tree() {
        let root = tree(&["b/kubepods".into()]);
        assert_eq!(
            find(&root, Some(OWN), Some("/b/kubepods")).unwrap(),
            Path::new("b/kubepods")
        );
        for wrong in ["../..", "c/kubepods"] {
            assert!(matches!(
                find(&root, None, Some(wrong)),
                Err(Error::NoSuchDirectory(_))
            ));
        }
    }

    #[test]
    fn a_hybrid_node_has_its_throttling_in_the_cpu_hierarchy() {
        let root = tree(&["unified/kubepods".into(), "cpu/kubepods".into()]);
        let unified = root.path().join("unified");
        let tree = v2_tree(root.path(), |dir| dir == unified).unwrap();
        let found = locate_in(root.path(), &tree, None, None).unwrap();
        assert_eq!(found.dir, unified.join("kubepods"));
        assert_eq!(found.cpu_v1, Some(root.path().join("cpu/kubepods")));
        assert_eq!(v2_tree(root.path(), |_| false), None);
    }

    #[test]
    fn ordinary_directories_are_no_cgroup_tree() {
        let root = tree(&["unified".into()]);
        let error = locate(root.path(), None, None).unwrap_err();
        assert!(matches!(error, Error::NoTree(_)), "{error}");
    }
}
