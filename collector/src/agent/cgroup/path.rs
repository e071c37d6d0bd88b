//! Reads pod UID and container id out of cgroup paths, for the cgroupfs and the systemd driver. Pure text:
//! never touches the file system, and takes any input without panicking.
//!
//! Sources of the shapes: kubelet's pkg/kubelet/cm/cgroup_manager_linux.go (names, `-` escaped as `_` for
//! systemd) and pkg/kubelet/cm/pod_container_manager_linux.go (`pod<UID>`).

/// Whose cgroup a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    /// The pod's UID as the API server has it; of a static pod the hash in `kubernetes.io/config.hash`.
    pub uid: String,
    /// The container's (or sandbox's) id; none for the pod's own directory.
    pub container: Option<String>,
    /// Path of the pod's own directory, relative to kubepods.
    pub pod_dir: String,
}

/// Whether a directory of this name holds a kubelet's pods: `kubepods` (cgroupfs), `kubepods.slice`, or
/// `<prefix>-kubepods.slice` (systemd under a `--cgroup-root`).
pub fn is_kubepods(name: &str) -> bool {
    name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice")
}

/// The pod UID that a directory's name carries, if it is a pod's own directory.
pub fn pod_uid(name: &str) -> Option<String> {
    let (uid, systemd) = match name.strip_suffix(".slice") {
        // Only the last "-pod" starts the UID: a UID has no '-' here, as systemd would read it as a level.
        Some(slice) => (slice.rsplit_once("-pod")?.1, true),
        None => (name.strip_prefix("pod")?, false),
    };
    let uid = if systemd {
        uid.replace('_', "-")
    } else {
        uid.to_owned()
    };
    is_uid(&uid).then_some(uid)
}

/// An RFC 4122 UID, or the 32 hexadecimal digits that a kubelet gives to a static pod.
fn is_uid(text: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    match text.len() {
        32 => text.bytes().all(hex),
        36 => text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => hex(b),
        }),
        _ => false,
    }
}

/// Reads a path relative to kubepods; none if no pod owns it (the QoS directories).
pub fn parse(path: &str) -> Option<PodCgroup> {
    let mut end = 0;
    // A pod's directory is a child of kubepods (Guaranteed) or of a QoS directory; deeper ones are its own.
    let mut parts = path.split('/').filter(|p| !p.is_empty());
    for _ in 0..2 {
        let part = parts.next()?;
        end = path[end..].find(part)? + end + part.len();
        if let Some(uid) = pod_uid(part) {
            return Some(PodCgroup {
                uid,
                container: parts.next().and_then(container_id),
                pod_dir: path[..end].to_owned(),
            });
        }
    }
    None
}

/// `<id>` as containerd names it with cgroupfs, `crio-<id>` as CRI-O does, or `<runtime>-<id>.scope` with systemd.
fn container_id(name: &str) -> Option<String> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let id = match name.rsplit_once('-') {
        // CRI-O's monitor process has a cgroup of its own beside the container's.
        Some((runtime, _)) if runtime.ends_with("conmon") => return None,
        Some((_, id)) => id,
        None => name,
    };
    (id.len() >= 12 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UID: &str = "7a0bd1f5-3c65-4a25-9d1c-0a1b2c3d4e5f";
    const CONTAINER: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";

    fn of(path: &str) -> Option<(String, Option<String>)> {
        parse(path).map(|p| (p.uid, p.container))
    }

    #[test]
    fn cgroupfs_paths_of_every_quality_of_service() {
        for qos in ["", "burstable/", "besteffort/"] {
            let pod = format!("{qos}pod{UID}");
            assert_eq!(of(&pod), Some((UID.into(), None)));
            let container = format!("{pod}/{CONTAINER}");
            assert_eq!(of(&container), Some((UID.into(), Some(CONTAINER.into()))));
            assert_eq!(parse(&container).unwrap().pod_dir, pod);
            let crio = format!("{pod}/crio-{CONTAINER}");
            assert_eq!(of(&crio), Some((UID.into(), Some(CONTAINER.into()))));
            let monitor = format!("{pod}/crio-conmon-{CONTAINER}");
            assert_eq!(of(&monitor), Some((UID.into(), None)));
        }
    }

    #[test]
    fn systemd_paths_of_containerd_and_crio() {
        let escaped = UID.replace('-', "_");
        let pod = format!("kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice");
        assert_eq!(of(&pod), Some((UID.into(), None)));
        for runtime in ["cri-containerd", "crio", "docker"] {
            assert_eq!(
                of(&format!("{pod}/{runtime}-{CONTAINER}.scope")),
                Some((UID.into(), Some(CONTAINER.into())))
            );
        }
        assert_eq!(
            of(&format!("{pod}/crio-conmon-{CONTAINER}.scope")),
            Some((UID.into(), None))
        );
        let guaranteed = format!("kubelet-kubepods-pod{escaped}.slice");
        assert_eq!(of(&guaranteed), Some((UID.into(), None)));
    }

    #[test]
    fn static_pods_have_a_hash_for_a_uid() {
        let hash = "3c8b1f0a9d7e6c5b4a39281706f5e4d3";
        assert_eq!(
            of(&format!("burstable/pod{hash}")),
            Some((hash.into(), None))
        );
        let slice = format!("kubepods-burstable.slice/kubepods-burstable-pod{hash}.slice");
        assert_eq!(of(&slice), Some((hash.into(), None)));
    }

    #[test]
    fn nested_cgroups_belong_to_the_container_and_its_pod() {
        let nested = format!("burstable/pod{UID}/{CONTAINER}/system.slice/nginx.service");
        assert_eq!(of(&nested), Some((UID.into(), Some(CONTAINER.into()))));
        // A kubelet inside a pod: its pods are, to this node, part of the outer pod.
        let inner = format!(
            "pod{UID}/{CONTAINER}/kubepods/burstable/pod{}",
            UID.replace('7', "8")
        );
        assert_eq!(of(&inner), Some((UID.into(), Some(CONTAINER.into()))));
    }

    #[test]
    fn what_no_pod_owns_is_nobodys() {
        for path in [
            "",
            "/",
            "burstable",
            "kubepods-besteffort.slice",
            "burstable/podium",
            "pod",
            "podX/y",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn names_of_kubepods() {
        for name in ["kubepods", "kubepods.slice", "kubelet-kubepods.slice"] {
            assert!(is_kubepods(name), "{name}");
        }
        for name in ["kubepods-burstable.slice", "mykubepods", "burstable", ""] {
            assert!(!is_kubepods(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_without_a_panic(path in "\\PC*") {
            let _ = parse(&path);
            let _ = is_kubepods(&path);
        }

        #[test]
        fn paths_made_of_likely_pieces_stay_consistent(
            parts in prop::collection::vec(
                prop_oneof![
                    Just("pod"), Just("-pod"), Just(".slice"), Just(".scope"), Just("/"), Just("_"), Just("-"),
                    Just("7a0bd1f5-3c65-4a25-9d1c-0a1b2c3d4e5f"), Just("burstable"), Just("cri-containerd-"),
                    Just("3c8b1f0a9d7e6c5b4a39281706f5e4d3"), Just("é"),
                ],
                0..12,
            )
        ) {
            let path = parts.concat();
            if let Some(found) = parse(&path) {
                prop_assert!(is_uid(&found.uid));
                prop_assert!(path.starts_with(&found.pod_dir));
                let again = parse(&found.pod_dir);
                prop_assert_eq!(again.map(|p| (p.uid, p.container)), Some((found.uid, None)));
            }
        }

        #[test]
        fn every_uid_survives_both_drivers(bytes in any::<u128>()) {
            let hex = format!("{bytes:032x}");
            let uid = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
            prop_assert_eq!(pod_uid(&format!("pod{uid}")), Some(uid.clone()));
            let slice = format!("kubepods-pod{}.slice", uid.replace('-', "_"));
            prop_assert_eq!(pod_uid(&slice), Some(uid));
        }
    }
}
