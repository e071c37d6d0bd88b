//! The own read API as people use it: kubectl's table, its watch and its explanations, in step with the metrics
//! API; and who may see what.

use std::time::Duration;

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{
    load::Load,
    metrics::{get_raw, quantity, value},
    product::{kubectl, run_kubectl},
    story::{self, Story},
    wait::eventually,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

const WINDOW: &str = "--field-selector=window=10s";

#[test]
fn kubectl_shows_what_workloads_do_while_they_do_it() -> story::Outcome {
    story::run("signals", async |story| {
        story.deploy_web("web", 2, &[]).await?;
        let url = story.url("web");
        let args = ["load", "--target", &url, "--phase", "90s@40"];
        let load = Load::start(&story.client, &story.namespace, "load", &args).await?;
        load.await_phase(0, 0, Duration::from_secs(20)).await?;
        eventually(
            "the table says 40 requests/s",
            Duration::from_secs(40),
            async || {
                let row = row(story, "web").await?;
                story.say(&row.join("  "));
                let [kind, pods, rate] = [&row[1], &row[2], &row[3]];
                ensure!(kind == "Deployment" && pods == "2", "{row:?}");
                let rate: f64 = rate.parse().context("not a rate")?;
                ensure!((rate - 40.0).abs() < 1.0, "{rate} requests/s");
                Ok(())
            },
        )
        .await?;
        figures_are_those_of_the_metrics_api(story).await?;
        the_watch_streams(story).await?;

        let explained = ["explain", "wsig.signals.requestLatencyP99Microseconds"];
        let text = run_kubectl(&story.kubeconfig, &explained).await?;
        ensure!(
            text.contains("99th percentile") && text.contains("<integer>"),
            "{text}"
        );
        let wide = ["get", "psig", "-n", &story.namespace, "-o", "wide"];
        let text = run_kubectl(&story.kubeconfig, &wide).await?;
        story.say(&format!("kubectl get psig -o wide\n{text}"));
        ensure!(
            text.contains("Deployment/web") && text.contains("live"),
            "{text}"
        );
        load.stop().await.map(drop)
    })
}

/// The cells of a workload in what kubectl prints.
async fn row(story: &Story, name: &str) -> anyhow::Result<Vec<String>> {
    let get = ["get", "workloadsignals", "-n", &story.namespace, WINDOW];
    let text = run_kubectl(&story.kubeconfig, &get).await?;
    let mut rows = text.lines().map(|line| line.split_whitespace());
    let row = rows.find(|row| row.clone().next() == Some(name));
    let row = row.with_context(|| format!("no {name} in {text}"))?;
    Ok(row.map(str::to_owned).collect())
}

async fn figures_are_those_of_the_metrics_api(story: &Story) -> anyhow::Result<()> {
    let selector = "ebpfscaler.io/deployment=web,ebpfscaler.io/window=10s";
    for (metric, field) in [
        ("requests_per_second", "requestsPerSecond"),
        (
            "network_receive_bytes_per_second",
            "networkReceiveBytesPerSecond",
        ),
        (
            "request_latency_p50_microseconds",
            "requestLatencyP50Microseconds",
        ),
    ] {
        eventually(
            &format!("both say the same {metric}"),
            Duration::from_secs(20),
            async || {
                let get = ["get", "wsig", "-n", &story.namespace, WINDOW, "-o", "json"];
                let list: Value =
                    serde_json::from_str(&run_kubectl(&story.kubeconfig, &get).await?)?;
                let items = list["items"].as_array().context("no items")?;
                let web = items.iter().find(|i| i["metadata"]["name"] == "web");
                let signal = &web.context("no web")?["signals"][field];
                let text = signal
                    .as_str()
                    .map_or_else(|| signal.to_string(), str::to_owned);
                let here = quantity(&Quantity(text))?;
                let there = value(&story.client, &story.namespace, metric, selector).await?;
                // Between the two questions a window moves on a little.
                let near = (here - there).abs() <= there * 0.1;
                ensure!(there > 0.0 && near, "{here} here, {there} there");
                Ok(())
            },
        )
        .await?;
    }
    Ok(())
}

async fn the_watch_streams(story: &Story) -> anyhow::Result<()> {
    let mut watch = kubectl(&story.kubeconfig)
        .args([
            "get",
            "workloadsignals",
            "web",
            "-n",
            &story.namespace,
            "--watch",
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("cannot run kubectl")?;
    let stdout = watch.stdout.take().context("kubectl has no output")?;
    let mut lines = BufReader::new(stdout).lines();
    let began = std::time::Instant::now();
    let mut rows = 0;
    let seen = tokio::time::timeout(Duration::from_secs(30), async {
        while rows < 5 {
            let line = lines.next_line().await?.context("the watch has ended")?;
            rows += usize::from(line.starts_with("web "));
        }
        anyhow::Ok(())
    });
    seen.await
        .with_context(|| format!("{rows} rows in 30 s"))??;
    let took = began.elapsed();
    story.say(&format!("5 rows of the watch in {took:.1?}"));
    ensure!(
        took >= Duration::from_secs(3),
        "more than one a second: {took:?}"
    );
    watch.kill().await.context("cannot end kubectl")
}

#[test]
fn rights_in_one_namespace_show_that_one() -> story::Outcome {
    story::run("signals-rights", async |story| {
        let namespace = &story.namespace;
        story.deploy_web("web", 1, &[]).await?;
        let user = format!("viewer-of-{namespace}");
        story
            .apply(&json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": "viewer", "namespace": namespace},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
                "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}],
            }))
            .await?;
        let get = async |scope: &[&str]| {
            let mut args = vec!["get", "workloadsignals", "--as", &user];
            args.extend(scope);
            run_kubectl(&story.kubeconfig, &args).await
        };
        eventually("its own", Duration::from_secs(30), async || {
            let text = get(&["-n", namespace]).await?;
            ensure!(text.contains("web"), "{text}");
            Ok(())
        })
        .await?;
        for scope in [&["-n", "kube-system"][..], &["-A"]] {
            match get(scope).await {
                Err(error) if format!("{error:#}").contains("Forbidden") => {}
                other => anyhow::bail!("{scope:?}: {other:?} instead of Forbidden"),
            }
        }
        let discovery = get_raw(&story.client, "/apis/signals.ebpfscaler.io/v1alpha1").await?;
        ensure!(discovery.contains("workloadsignals"), "{discovery}");
        Ok(())
    })
}
