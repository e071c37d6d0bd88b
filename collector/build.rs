//! Embeds the BPF object that hack/setup/bpf.sh builds, if there is one: without it the crate still compiles
//! and the agent says how to get it.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(bpf_object)");
    println!("cargo::rerun-if-env-changed=EBPF_SCALER_BPF_OBJECT");
    println!("cargo::rerun-if-env-changed=EBPF_SCALER_CACHE");
    let object = object();
    // Also when it does not exist: Cargo then looks again at each build.
    println!("cargo::rerun-if-changed={}", object.display());
    if object.is_file() {
        println!("cargo::rustc-cfg=bpf_object");
        println!(
            "cargo::rustc-env=EBPF_SCALER_BPF_OBJECT_PATH={}",
            object.display()
        );
    }
}

fn object() -> PathBuf {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let repository =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    let cache = set("EBPF_SCALER_CACHE").unwrap_or_else(|| repository.join(".cache"));
    let object = set("EBPF_SCALER_BPF_OBJECT").unwrap_or_else(|| cache.join("bpf/programs.o"));
    object.canonicalize().unwrap_or(object)
}
