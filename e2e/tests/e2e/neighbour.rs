//! Installing as README says takes over no API that somebody else provides: kube-apiserver refuses, and names who.

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{client::root, product::run_kubectl, story};

/// A stranger's group, in which everything is as in external.metrics.k8s.io.
const GROUP: &str = "stranger.ebpf-scaler-e2e.test";

#[test]
fn an_api_of_somebody_else_is_not_taken_over_unasked() -> story::Outcome {
    story::run("neighbour", async |story| {
        let folder = root().join("config/apiservice").display().to_string();
        let ours = run_kubectl(&story.kubeconfig, &["kustomize", &folder]).await?;
        ensure!(ours.contains("name: ebpf-scaler-apiserver"), "{ours}");
        let ours = ours.replace("external.metrics.k8s.io", GROUP);
        let theirs = ours.replace(
            "name: ebpf-scaler-apiserver",
            "name: keda-metrics-apiserver",
        );
        let files =
            std::env::temp_dir().join(format!("ebpf-scaler-neighbour-{}", std::process::id()));
        std::fs::create_dir_all(&files)?;
        let write = |name: &str, text: &str| -> anyhow::Result<String> {
            let file = files.join(name);
            std::fs::write(&file, text)?;
            Ok(file.display().to_string())
        };
        let (ours, theirs) = (write("ours", &ours)?, write("theirs", &theirs)?);
        let apply = async |manager: &str, file: &str, more: &[&str]| {
            let args = ["apply", "--server-side", manager, "-f", file];
            run_kubectl(&story.kubeconfig, &[&args[..], more].concat()).await
        };
        // However they have applied it, their manager is not ours.
        apply("--field-manager=kubectl", &theirs, &[]).await?;
        let refused = apply("--field-manager=ebpf-scaler", &ours, &["--dry-run=server"]).await;
        let agreed = apply(
            "--field-manager=ebpf-scaler",
            &ours,
            &["--dry-run=server", "--force-conflicts"],
        )
        .await;
        // First of all away with it: as nobody serves it, it holds up the deletion of namespaces.
        let delete = ["delete", "-f", theirs.as_str(), "--timeout=60s"];
        run_kubectl(&story.kubeconfig, &delete).await?;
        std::fs::remove_dir_all(&files)?;
        let refusal = refused.err().context("it was taken over")?.to_string();
        ensure!(
            refusal.contains("conflict") && refusal.contains(".spec.service.name"),
            "{refusal}"
        );
        agreed.map(drop)
    })
}
