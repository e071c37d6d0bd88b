//! What an installation consists of: everything is ready, the agent is not privileged, and nobody has more rights
//! than it needs.

use anyhow::{Context, ensure};
use ebpf_scaler_e2e::{
    PRODUCT,
    client::connect_as,
    metrics::component_pods,
    product,
    story::{self, Story},
};
use k8s_openapi::api::authorization::v1::{SelfSubjectRulesReview, SubjectAccessReview};
use kube::{Api, api::PostParams};
use serde_json::json;

#[test]
fn everything_installed_is_ready() -> story::Outcome {
    story::run("install", async |story| {
        product::ready(&story.client).await?;
        for component in ["agent", "apiserver", "operator"] {
            for pod in component_pods(&story.client, component).await? {
                let restarts: i32 = pod
                    .status
                    .and_then(|status| status.container_statuses)
                    .unwrap_or_default()
                    .iter()
                    .map(|container| container.restart_count)
                    .sum();
                let name = pod.metadata.name.unwrap_or_default();
                ensure!(restarts == 0, "{name} was restarted {restarts} times");
            }
        }
        Ok(())
    })
}

#[test]
fn the_agent_is_not_privileged() -> story::Outcome {
    story::run("unprivileged", async |story| {
        let pods = component_pods(&story.client, "agent").await?;
        let pod = pods.into_iter().next().context("there is no agent")?;
        let spec = pod.spec.context("the agent's pod has no spec")?;
        ensure!(
            !spec.host_network.unwrap_or(false),
            "it uses the host's network"
        );
        ensure!(
            !spec.host_pid.unwrap_or(false),
            "it sees the host's processes"
        );
        ensure!(
            spec.automount_service_account_token == Some(false),
            "an API token is mounted"
        );
        for container in spec.containers {
            let security = container.security_context.context("no security context")?;
            ensure!(security.privileged != Some(true), "it is privileged");
            ensure!(
                security.allow_privilege_escalation == Some(false),
                "it may escalate"
            );
            ensure!(
                security.read_only_root_filesystem == Some(true),
                "its root is writable"
            );
            let capabilities = security.capabilities.context("no capabilities")?;
            ensure!(
                capabilities.drop == Some(vec!["ALL".to_owned()]),
                "it keeps capabilities"
            );
            let mut added = capabilities.add.unwrap_or_default();
            added.sort();
            ensure!(added == ["BPF", "NET_ADMIN", "PERFMON"], "it has {added:?}");
        }
        Ok(())
    })
}

#[test]
fn the_agents_service_account_can_do_nothing() -> story::Outcome {
    story::run("no-rights", async |story| {
        let user = format!("system:serviceaccount:{PRODUCT}:ebpf-scaler-agent");
        let agent = connect_as(&story.kubeconfig, &user).await?;
        for namespace in ["default", "kube-system", PRODUCT] {
            let review: SelfSubjectRulesReview = serde_json::from_value(json!({
                "metadata": {}, "spec": {"namespace": namespace},
            }))?;
            let api: Api<SelfSubjectRulesReview> = Api::all(agent.clone());
            let review = api.create(&PostParams::default(), &review).await?;
            let rules = review
                .status
                .context("the review has no answer")?
                .resource_rules;
            for rule in rules {
                // Everybody may ask what they may do, and who they are.
                let resources = rule.resources.unwrap_or_default();
                let asks_about_itself = resources
                    .iter()
                    .all(|resource| resource.starts_with("selfsubject"));
                ensure!(
                    asks_about_itself,
                    "in {namespace} the agent may {:?} {resources:?}",
                    rule.verbs
                );
            }
        }
        Ok(())
    })
}

#[test]
fn no_component_has_rights_that_it_must_not_have() -> story::Outcome {
    story::run("least-rights", async |story| {
        for (account, verb, group, resource, namespace) in [
            ("apiserver", "get", "", "secrets", "kube-system"),
            ("apiserver", "list", "", "secrets", PRODUCT),
            ("apiserver", "create", "", "pods", "default"),
            ("apiserver", "patch", "apps", "deployments", "default"),
            ("apiserver", "patch", "apps", "deployments/scale", "default"),
            ("apiserver", "impersonate", "", "users", ""),
            ("operator", "get", "", "secrets", "kube-system"),
            ("operator", "list", "", "secrets", ""),
            ("operator", "create", "", "pods", "default"),
            ("operator", "delete", "apps", "deployments", "default"),
            ("operator", "patch", "apps", "deployments", "default"),
            (
                "operator",
                "delete",
                "ebpfscaler.io",
                "ebpfscalers",
                "default",
            ),
            (
                "operator",
                "delete",
                "ebpfscaler.io",
                "scalinghistories",
                "default",
            ),
            (
                "operator",
                "create",
                "rbac.authorization.k8s.io",
                "clusterrolebindings",
                "",
            ),
            ("operator", "impersonate", "", "users", ""),
        ] {
            let may = allowed(story, account, verb, group, resource, namespace).await?;
            ensure!(!may, "{account} may {verb} {resource} in {namespace:?}");
        }
        let scale = allowed(
            story,
            "operator",
            "patch",
            "apps",
            "deployments/scale",
            "default",
        );
        ensure!(
            scale.await?,
            "the operator may not scale, so the question is put wrongly"
        );
        Ok(())
    })
}

async fn allowed(
    story: &Story,
    account: &str,
    verb: &str,
    group: &str,
    resource: &str,
    namespace: &str,
) -> anyhow::Result<bool> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review: SubjectAccessReview = serde_json::from_value(json!({
        "metadata": {},
        "spec": {
            "user": format!("system:serviceaccount:{PRODUCT}:ebpf-scaler-{account}"),
            "groups": [
                "system:serviceaccounts",
                format!("system:serviceaccounts:{PRODUCT}"),
                "system:authenticated",
            ],
            "resourceAttributes": {
                "verb": verb, "group": group, "resource": resource,
                "subresource": subresource, "namespace": namespace,
            },
        },
    }))?;
    let api: Api<SubjectAccessReview> = Api::all(story.client.clone());
    let review = api.create(&PostParams::default(), &review).await?;
    Ok(review.status.context("the review has no answer")?.allowed)
}
