//! What a person would look at first when a test has failed, printed at once: the cluster may be gone later.

use std::path::Path;

use crate::{PRODUCT, product::run_kubectl};

/// Prints the state of a namespace and of the product.
pub async fn print(kubeconfig: &Path, namespace: &str) {
    let app = "app.kubernetes.io/name=ebpf-scaler";
    let commands: [&[&str]; 6] = [
        &[
            "get",
            "pods,ebpfscalers,scalinghistories,hpa,deployments",
            "-o",
            "wide",
            "-n",
            namespace,
        ],
        &["describe", "ebpfscalers,hpa", "-n", namespace],
        &["get", "events", "--sort-by=.lastTimestamp", "-n", namespace],
        &["get", "pods", "-o", "wide", "-n", PRODUCT],
        &["get", "events", "--sort-by=.lastTimestamp", "-n", PRODUCT],
        &[
            "logs",
            "-n",
            PRODUCT,
            "-l",
            app,
            "--prefix",
            "--tail=30",
            "--max-log-requests=20",
        ],
    ];
    for args in commands {
        eprintln!("--- kubectl {}", args.join(" "));
        match run_kubectl(kubeconfig, args).await {
            Ok(text) => eprintln!("{}", last_lines(&text, 120)),
            Err(error) => eprintln!("{error:#}"),
        }
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
