//! Watches: what changes, from when on, and how often.

use futures::{StreamExt, TryStreamExt};
use kube::api::{WatchEvent, WatchParams};
use kube_runtime::watcher;

use super::*;

fn events(text: &str) -> Vec<Value> {
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn a_watch_tells_what_changes_once_a_second() {
    let (world, mut agent) = shop().await;
    let pods: Api<PodSignals> = Api::namespaced(world.client("alice"), "shop");
    let version = pods
        .list(&ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version;
    let params = WatchParams::default().timeout(60);
    let mut events = pods
        .watch(&params, &version.unwrap())
        .await
        .unwrap()
        .boxed();
    // Nothing is told again that the list has told.
    agent.send(samples(1000)).await;
    agent.stay();
    let mut next = async || {
        tokio::time::timeout(WAIT, events.try_next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    };
    for name in ["web-1", "web-2"] {
        let WatchEvent::Modified(pod) = next().await else {
            panic!()
        };
        assert_eq!(pod.metadata.name.as_deref(), Some(name));
        assert!(pod.signals.get("requests_per_second").unwrap() > 40.0);
    }
    world.cluster.pod("web-4", "n1", |_| {});
    let WatchEvent::Added(pod) = next().await else {
        panic!()
    };
    assert_eq!(pod.metadata.name.as_deref(), Some("web-4"));
    assert_eq!(pod.missing[0].reason, "NoPods", "{pod:?}");
    let version = pod.metadata.resource_version.unwrap();
    world.cluster.delete("Pod", "web-1");
    let deleted = loop {
        match next().await {
            WatchEvent::Deleted(pod) => break pod,
            WatchEvent::Modified(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(deleted.metadata.name.as_deref(), Some("web-1"));
    // A watch goes on where another ended.
    let mut events = pods.watch(&params, &version).await.unwrap().boxed();
    let first = tokio::time::timeout(WAIT, events.try_next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(!matches!(first, WatchEvent::Added(_)), "{first:?}");
}

#[tokio::test]
async fn changes_come_once_a_second_at_most_and_are_computed_once_for_all() {
    let (world, mut agent) = shop().await;
    let fields = "fieldSelector=metadata.name%3Dweb-1";
    let path = format!("{SHOP}/podsignals?watch=true&timeoutSeconds=5&{fields}");
    let began = std::time::Instant::now();
    let user = world.proxy("kubectl");
    let watches = futures::future::join_all((0..10).map(|_| world.text(&user, &path)));
    let load = async {
        for tick in 0..45u64 {
            agent.send(samples(5000 + tick * tick)).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (texts, ()) = tokio::join!(watches, load);
    let most = began.elapsed().as_secs() as usize + 2;
    let mut versions = std::collections::BTreeSet::new();
    for text in texts {
        let events = events(&text);
        assert!(
            (3..=most).contains(&events.len()),
            "{} of {most}",
            events.len()
        );
        for (i, event) in events.iter().enumerate() {
            assert_eq!(event["type"], if i == 0 { "ADDED" } else { "MODIFIED" });
            let metadata = &event["object"]["metadata"];
            assert_eq!(metadata["name"], "web-1");
            versions.insert(metadata["resourceVersion"].to_string());
        }
    }
    // What was computed for one was told to all.
    assert!(versions.len() <= most, "{versions:?} of {most}");
}

#[tokio::test]
async fn informers_list_watch_and_begin_again() {
    let (world, mut agent) = shop().await;
    let client = world.client("alice");
    let ways = [
        (watcher::Config::default(), 2000),
        (watcher::Config::default().streaming_lists(), 9000),
    ];
    for (config, requests) in ways {
        let pods: Api<PodSignals> = Api::namespaced(client.clone(), "shop");
        let mut events = watcher(pods, config).boxed();
        let mut names = Vec::new();
        loop {
            match tokio::time::timeout(WAIT, events.try_next())
                .await
                .unwrap()
                .unwrap()
                .unwrap()
            {
                watcher::Event::InitApply(pod) => names.push(pod.metadata.name.unwrap()),
                watcher::Event::InitDone => break,
                watcher::Event::Init => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(names, ["web-1", "web-2", "web-3"]);
        agent.send(samples(requests)).await;
        agent.stay();
        let event = tokio::time::timeout(WAIT, events.try_next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert!(matches!(event, watcher::Event::Apply(_)), "{event:?}");
    }
}

#[tokio::test]
async fn versions_that_are_not_known_are_gone() {
    let (world, _agent) = shop().await;
    let user = world.proxy("kubectl");
    for version in ["1", "99999999999999999999", "18446744073709551615"] {
        let path = format!("{SHOP}/workloadsignals?watch=true&resourceVersion={version}");
        let reply = world.get(&user, &path).await;
        let code = if version.len() == 20 && version.starts_with('9') {
            400
        } else {
            410
        };
        assert_eq!(reply.status.as_u16(), code, "{version}: {}", reply.body);
        if code == 410 {
            assert_eq!(reply.body["reason"], "Expired");
        }
    }
    // One that another replica has just told is good: everything is told again, so that nothing is missed.
    let other = world.beside().await;
    let list = other.get(&user, &format!("{SHOP}/podsignals")).await;
    let version = list.body["metadata"]["resourceVersion"].as_str().unwrap();
    world.cluster.delete("Pod", "web-3");
    eventually("the pod is gone", || async {
        let reply = world.get(&user, &format!("{SHOP}/podsignals/web-3")).await;
        reply.status == StatusCode::NOT_FOUND
    })
    .await;
    let path = format!("{SHOP}/podsignals?watch=true&timeoutSeconds=2&resourceVersion={version}");
    let text = world.text(&user, &path).await;
    let events = events(&text);
    let told: Vec<_> = events
        .iter()
        .map(|e| {
            (
                e["type"].as_str().unwrap(),
                e["object"]["metadata"]["name"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told[..3],
        [
            ("DELETED", "web-3"),
            ("MODIFIED", "web-1"),
            ("MODIFIED", "web-2")
        ]
    );
}

#[tokio::test]
async fn a_watch_of_tables_has_columns_once_and_bookmarks_are_told() {
    let (world, _agent) = shop().await;
    let kubectl = world.proxy("kubectl").with("accept", TABLE);
    let path = format!(
        "{SHOP}/workloadsignals?watch=true&timeoutSeconds=2&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let text = world.text(&kubectl, &path).await;
    let events = events(&text);
    let types: Vec<_> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["ADDED", "ADDED", "BOOKMARK"]);
    let columns = |e: &Value| e["object"]["columnDefinitions"].as_array().unwrap().len();
    assert_eq!(events.iter().map(columns).collect::<Vec<_>>(), [22, 0, 0]);
    assert_eq!(events[1]["object"]["rows"][0]["cells"][0], "web.job");
    let end = &events[2]["object"]["metadata"];
    assert_eq!(end["annotations"]["k8s.io/initial-events-end"], "true");
}
