//! What config/tls adds to config/default: the agent's rights to look into processes, and nothing else. It only renders
//! them, and applies nothing.

use std::path::Path;

use ebpf_scaler_e2e::product::run_kubectl;

/// The lines of a kustomization, without their places.
async fn rendered(folder: &str) -> anyhow::Result<Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = root.join(folder).display().to_string();
    // No cluster is asked.
    let text = run_kubectl(Path::new("/dev/null"), &["kustomize", &folder]).await?;
    let mut lines: Vec<String> = text.lines().map(|l| l.trim().to_owned()).collect();
    lines.sort_unstable();
    Ok(lines)
}

#[tokio::test]
async fn the_tls_overlay_adds_what_uprobes_need_and_nothing_else() -> anyhow::Result<()> {
    let mut added = rendered("config/tls").await?;
    for line in rendered("config/default").await? {
        let at = added.binary_search(&line);
        added.remove(at.map_err(|_| anyhow::anyhow!("not in config/tls: {line}"))?);
    }
    anyhow::ensure!(
        added
            == [
                "- SYS_ADMIN",
                "- SYS_PTRACE",
                "- name: EBPF_SCALER_TLS_UPROBES",
                "hostPID: true",
                "value: wanted",
            ],
        "added: {added:?}"
    );
    Ok(())
}
