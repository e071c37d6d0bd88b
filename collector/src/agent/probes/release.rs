//! Tells a kernel that is too old from other reasons why programs do not load. It never keeps them from being tried:
//! distributions carry newer parts back into older kernels.

use super::ProbeError;

/// Puts the kernel's age in place of a reason that comes from it: an unknown helper or map, a refusal.
pub fn explain(error: ProbeError, floor: (u32, u32)) -> ProbeError {
    let ProbeError::Kernel { act, .. } = &error else {
        return error;
    };
    // A missing directory is what it is on any kernel.
    if act.starts_with("open the cgroup") || act.starts_with("find ") {
        return error;
    }
    match too_old(floor) {
        Some(reason) => ProbeError::Kernel {
            act: act.clone(),
            reason,
        },
        None => error,
    }
}

/// If the running kernel is older than that, a sentence that says so.
pub fn too_old(floor: (u32, u32)) -> Option<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    below(release.trim(), floor)
}

fn below(release: &str, floor: (u32, u32)) -> Option<String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let version = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (version < floor).then(|| {
        format!(
            "this kernel is Linux {release}, and {}.{} or later is needed",
            floor.0, floor.1
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_as_distributions_write_them() {
        for old in ["5.10.0-32-amd64", "5.16.20", "5.9", "4.18.0-553.el8.x86_64"] {
            let said = below(old, (5, 17)).unwrap_or_default();
            assert_eq!(
                said,
                format!("this kernel is Linux {old}, and 5.17 or later is needed")
            );
        }
        for new in [
            "5.17.0",
            "6.1.0-50-amd64",
            "7.3.4+deb13",
            "10.0",
            "rolling",
            "",
        ] {
            assert_eq!(below(new, (5, 17)), None, "{new}");
        }
    }

    #[test]
    fn only_what_comes_from_the_kernel_is_explained_by_its_age() {
        let error = |act: &str| ProbeError::Kernel {
            act: act.into(),
            reason: "no".into(),
        };
        let future = (u32::MAX, 0);
        let said = explain(error("load the program egress"), future).to_string();
        assert!(
            said.starts_with("load the program egress: this kernel is Linux "),
            "{said}"
        );
        let said = explain(error("open the cgroup /x"), future).to_string();
        assert_eq!(said, "open the cgroup /x: no");
        let said = explain(error("load the program egress"), (1, 0)).to_string();
        assert_eq!(said, "load the program egress: no");
    }
}
