//! Deleting what was applied leaves nothing of the product in the cluster, and the cluster works on. The last
//! story by name; any other one installs again.

use std::time::Duration;

use anyhow::ensure;
use ebpf_scaler_e2e::{
    PRODUCT,
    product::{delete_kustomization, run_kubectl},
    story::{self, OVERLAY, Story},
    wait::eventually,
};

/// Every kind that the product or its operator creates.
const KINDS: [&str; 9] = [
    "namespaces",
    "customresourcedefinitions",
    "apiservices",
    "clusterroles",
    "clusterrolebindings",
    "priorityclasses",
    "validatingadmissionpolicies",
    "rolebindings,roles,configmaps,secrets,services -n kube-system",
    "leases -n kube-system",
];

#[test]
fn nothing_is_left() -> story::Outcome {
    story::run("uninstall", async |story| {
        delete_kustomization(&story.kubeconfig, OVERLAY).await?;
        eventually(
            "nothing of the product is left",
            Duration::from_secs(90),
            async || {
                let left = left(story).await?;
                ensure!(left.is_empty(), "still there: {left:?}");
                Ok(())
            },
        )
        .await?;
        // An aggregated API that is gone but still registered would block this.
        let probe = format!("{}-probe", story.namespace);
        run_kubectl(&story.kubeconfig, &["create", "namespace", &probe]).await?;
        let delete = ["delete", "namespace", &probe, "--timeout=60s"];
        run_kubectl(&story.kubeconfig, &delete).await.map(drop)
    })
}

async fn left(story: &Story) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    for kind in KINDS {
        let mut args = vec!["get", "-o", "name"];
        args.extend(kind.split(' '));
        let names = run_kubectl(&story.kubeconfig, &args).await?;
        let ours = |name: &&str| {
            let ours = [
                PRODUCT,
                "ebpfscaler",
                "external.metrics.k8s.io",
                "custom.metrics.k8s.io",
            ];
            ours.iter().any(|part| name.contains(part)) && !name.contains("e2e-")
        };
        left.extend(names.lines().filter(ours).map(str::to_owned));
    }
    Ok(left)
}
