//! config/cert-manager: certificates by cert-manager instead of our operator. cert-manager itself is not in the test
//! cluster, so what is checked is that its objects and ours name each other, and that the cluster takes the rest.

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{PRODUCT, client::root, product::run_kubectl, story};
use serde_json::Value;

const SECRET: &str = "ebpf-scaler-apiserver-tls";

#[test]
fn the_cert_manager_overlay_fits_together_and_is_taken() -> story::Outcome {
    story::run("cert-manager", async |story| {
        let folder = root().join("config/cert-manager").display().to_string();
        let text = run_kubectl(&story.kubeconfig, &["kustomize", &folder]).await?;
        let documents: Vec<&str> = text.split("\n---\n").collect();
        let objects = documents
            .iter()
            .map(|text| serde_saphyr::from_str(text).context("not YAML"))
            .collect::<anyhow::Result<Vec<Value>>>()?;
        fits(&objects)?;

        // What is not cert-manager's, the cluster takes as it is.
        let ours = objects.iter().zip(&documents).filter(|(object, _)| {
            let version = object["apiVersion"].as_str().unwrap_or_default();
            !version.starts_with("cert-manager.io/")
        });
        let ours: Vec<&str> = ours.map(|(_, text)| *text).collect();
        let file = std::env::temp_dir().join(format!("ebpf-scaler-overlay-{}", std::process::id()));
        std::fs::write(&file, ours.join("\n---\n"))?;
        let path = file.display().to_string();
        let apply = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "-f",
        ];
        let taken = run_kubectl(&story.kubeconfig, &[&apply[..], &[path.as_str()]].concat()).await;
        std::fs::remove_file(&file)?;
        taken.map(|_| ())
    })
}

/// Whether the objects name what the components read.
fn fits(objects: &[Value]) -> anyhow::Result<()> {
    let find = |kind: &str, name: &str| {
        let found = objects
            .iter()
            .find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
        found.with_context(|| format!("there is no {kind} {name}"))
    };
    let serving = find("Certificate", SECRET)?;
    ensure!(serving["spec"]["secretName"] == SECRET, "{serving}");
    ensure!(serving["metadata"]["namespace"] == PRODUCT, "{serving}");
    let names = serving["spec"]["dnsNames"].to_string();
    for service in ["ebpf-scaler-apiserver", "ebpf-scaler-report"] {
        ensure!(
            names.contains(&format!("\"{service}.{PRODUCT}.svc\"")),
            "{names}"
        );
        find("Service", service)?;
    }
    let issuer = find(
        "Issuer",
        serving["spec"]["issuerRef"]["name"]
            .as_str()
            .unwrap_or_default(),
    )?;
    let ca = find("Certificate", "ebpf-scaler-ca")?;
    ensure!(
        issuer["spec"]["ca"]["secretName"] == ca["spec"]["secretName"],
        "{issuer}"
    );
    // A renewed CA with another key would not verify what the old one signed.
    ensure!(
        ca["spec"]["privateKey"]["rotationPolicy"] == "Never",
        "{ca}"
    );

    let service = find("APIService", "v1beta1.external.metrics.k8s.io")?;
    let injected = &service["metadata"]["annotations"]["cert-manager.io/inject-ca-from"];
    ensure!(*injected == format!("{PRODUCT}/{SECRET}"), "{service}");

    let operator = &find("Deployment", "ebpf-scaler-operator")?["spec"]["template"]["spec"];
    let environment = operator["containers"][0]["env"].as_array();
    let off = environment.into_iter().flatten().any(|variable| {
        variable["name"] == "EBPF_SCALER_MANAGE_CERTIFICATES" && variable["value"] == "false"
    });
    ensure!(off, "the operator makes certificates too");

    let agent = &find("DaemonSet", "ebpf-scaler-agent")?["spec"]["template"]["spec"];
    let volumes = agent["volumes"].as_array();
    let volume = volumes.into_iter().flatten().find(|v| v["name"] == "ca");
    let volume = volume.context("the agent has no volume ca")?;
    let items = &volume["secret"]["items"];
    ensure!(
        volume["configMap"].is_null() && volume["secret"]["secretName"] == SECRET,
        "{volume}"
    );
    // Never the key.
    ensure!(
        items.as_array().is_some_and(|i| i.len() == 1) && items[0]["key"] == "ca.crt",
        "{volume}"
    );
    Ok(())
}
