//! A metric narrowed to a port or a container: from the query to the agents, and from what they count apart to the
//! answer.

use ebpf_scaler_proto as proto;
use serde_json::{Value, json};

use super::streams::Operator;
use super::world::*;

fn with_containers(pod: &mut Value, id: &str) {
    pod["spec"]["containers"] = json!([{"name": "app"}]);
    pod["spec"]["initContainers"] = json!([{"name": "proxy", "restartPolicy": "Always"}]);
    let status = |name: &str, id: &str| {
        json!([{
            "name": name, "containerID": format!("containerd://{id}"), "image": "", "imageID": "", "ready": true,
            "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }])
    };
    pod["status"]["containerStatuses"] = status("app", id);
    pod["status"]["initContainerStatuses"] = status("proxy", "proxy-1");
}

fn part(pod: &str, (container_id, port): (&str, u32), requests: u64) -> proto::PodSample {
    proto::PodSample {
        part: Some(proto::Part {
            container_id: container_id.into(),
            port,
            ..proto::Part::default()
        }),
        ..sample(pod, requests)
    }
}

impl Agent {
    /// Waits until the replica wants that of its pods.
    async fn wanted_apart(&mut self, holds: impl Fn(&[proto::Division]) -> bool) {
        self.wanted(|want| holds(&want.divide)).await;
    }

    /// Three seconds in no time: requests a tick of the pod and of its parts.
    async fn divided(&mut self, pod: (&str, u64), parts: &[((&str, u32), u64)]) {
        for tick in 0..=12 {
            self.at += TICK;
            let parts = parts
                .iter()
                .map(|(key, rate)| part(pod.0, *key, tick * rate));
            let report = proto::ReportRequest {
                monotonic_micros: self.at,
                samples: vec![sample(pod.0, 400 + tick * pod.1)],
                parts: parts.collect(),
                families: vec![
                    proto::Family::Requests.into(),
                    proto::Family::Network.into(),
                ],
                ..proto::ReportRequest::default()
            };
            self.sender.send(report).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_query_has_a_port_counted_apart_and_then_gets_its_value() {
    let prepare = |cluster: &super::cluster::Cluster| {
        cluster.pod("web-1", "n1", |_| {});
        cluster.pod("web-2", "n2", |pod| {
            pod["metadata"]["labels"]["app"] = json!("db")
        });
    };
    let world = World::with(prepare, &[]).await;
    let (mut agent, mut other) = (world.agent("n1").await, world.agent("n2").await);
    agent.steady(&["web-1"], 10).await;
    other.steady(&["web-2"], 10).await;
    let selector = "app%3Dweb,ebpfscaler.io%2Fport%3D8080";
    eventually("an answer that says what is missing", || async {
        let reply = world.metric("requests_per_second", selector).await;
        reply.status == 503
            && reply.body["message"].as_str().is_some_and(|message| {
                message.contains("does not count port 8080 of pod web-1 apart yet")
            })
    })
    .await;
    agent
        .wanted_apart(|divide| {
            divide.len() == 1
                && divide[0].pod_uid == "uid-web-1"
                && (divide[0].ports == [8080] && !divide[0].containers)
        })
        .await;
    other.wanted_apart(<[proto::Division]>::is_empty).await;

    agent.divided(("web-1", 10), &[(("", 8080), 4)]).await;
    eventually("the port's rate", || async {
        let reply = world.metric("requests_per_second", selector).await;
        reply.status == 200 && reply.body["items"][0]["value"] == "16"
    })
    .await;
    let whole = world
        .metric(
            "requests_per_second",
            "app%3Dweb,ebpfscaler.io%2Fwindow%3D3s",
        )
        .await;
    assert_eq!(whole.body["items"][0]["value"], "40");
    // A mistake costs the agents nothing and says what would be right.
    for (selector, code, says) in [
        (
            "ebpfscaler.io%2Fcontainer%3Dapp",
            404,
            "has a container app",
        ),
        ("ebpfscaler.io%2Fport%3D0", 400, "of 1 to 65535"),
    ] {
        let reply = world.metric("requests_per_second", selector).await;
        assert_eq!(reply.status, code, "{}", reply.body);
        let message = reply.body["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
    }
}

#[tokio::test]
async fn an_operator_follows_a_container_by_its_name_through_a_restart() {
    let world = World::with(
        |cluster| cluster.pod("web-1", "n1", |pod| with_containers(pod, "app-1")),
        &[],
    )
    .await;
    let mut agent = world.agent("n1").await;
    agent.steady(&["web-1"], 10).await;
    let mut operator = Operator::connect(&world).await;
    for (id, key) in [("app", "container=app"), ("proxy", "container=proxy")] {
        let selector = format!("app=web,ebpfscaler.io/{key}");
        operator
            .subscribe(id, "requests_per_second", &selector, &[3])
            .await;
    }
    let error = operator
        .next("app", |a| a.error.is_some())
        .await
        .error
        .unwrap();
    assert_eq!(error.code, 503, "{}", error.message);
    agent
        .wanted_apart(|divide| divide.len() == 1 && divide[0].containers)
        .await;
    let parts = [(("app-1", 0), 6), (("proxy-1", 0), 3)];
    agent.divided(("web-1", 9), &parts).await;
    let is =
        |value: f64| move |a: &proto::Answer| a.windows.first().is_some_and(|w| w.value == value);
    operator.next("app", is(24.0)).await;
    operator.next("proxy", is(12.0)).await;

    // Another run of the container: an id of its own, and counts from its birth.
    world
        .cluster
        .pod("web-1", "n1", |pod| with_containers(pod, "app-2"));
    let parts = [(("app-2", 0), 5), (("proxy-1", 0), 3)];
    for tick in 13..=40 {
        agent.at += TICK;
        let mut parts: Vec<_> = parts
            .iter()
            .map(|(key, rate)| part("web-1", *key, tick * rate))
            .collect();
        let born = parts[0].part.as_mut().unwrap();
        born.from_birth = true;
        parts[0].counters.as_mut().unwrap().requests = (tick - 13) * 5;
        let report = proto::ReportRequest {
            monotonic_micros: agent.at,
            samples: vec![sample("web-1", 600 + tick * 9)],
            parts,
            families: vec![proto::Family::Requests.into()],
            ..proto::ReportRequest::default()
        };
        agent.sender.send(report).await.unwrap();
    }
    operator.next("app", is(20.0)).await;
}
