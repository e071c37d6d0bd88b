use super::*;

fn read(resource: Resource, query: &str) -> Result<Wanted, Failure> {
    let options = Options::read(&format!("/apis?{query}").parse().unwrap())?;
    Wanted::read(resource, &options, false)
}

#[test]
fn a_window_is_asked_for_by_field_or_by_label() {
    for (query, window) in [
        ("", Window::S30),
        ("fieldSelector=window%3D3s", Window::S3),
        (
            "fieldSelector=metadata.name%3Dweb,window%3D%3D1m",
            Window::S60,
        ),
        ("labelSelector=ebpfscaler.io%2Fwindow%3D10s", Window::S10),
        (
            "labelSelector=ebpfscaler.io%2Fwindow%3D10s&fieldSelector=window%3D10s",
            Window::S10,
        ),
    ] {
        let wanted = read(Resource::Workloads, query).unwrap();
        assert_eq!(wanted.window, window, "{query}");
    }
}

#[test]
fn a_name_as_a_field_is_a_question_about_one_object() {
    let wanted = read(Resource::Pods, "fieldSelector=metadata.name%3Da").unwrap();
    assert_eq!(wanted.name.as_deref(), Some("a"));
    let wanted = read(Resource::Pods, "fieldSelector=metadata.name!%3Da").unwrap();
    assert_eq!(wanted.name, None);
}

#[test]
fn what_can_not_be_honoured_is_refused() {
    for (query, code, says) in [
        (
            "fieldSelector=status.phase%3DRunning",
            400,
            "field label not supported",
        ),
        (
            "fieldSelector=window%3D7s",
            400,
            "1s, 3s, 10s, 30s, 60s, 5m",
        ),
        (
            "fieldSelector=window!%3D3s",
            400,
            "field label not supported",
        ),
        ("fieldSelector=web", 400, "can't understand it"),
        (
            "fieldSelector=window%3D3s&labelSelector=ebpfscaler.io%2Fwindow%3D10s",
            400,
            "two windows",
        ),
        (
            "labelSelector=ebpfscaler.io%2Fgroup-by%3Dpod",
            400,
            "podsignals are by pod",
        ),
        (
            "labelSelector=ebpfscaler.io%2Fcontainer%3Dapp",
            400,
            "signals are of whole pods",
        ),
        (
            "labelSelector=ebpfscaler.io%2Fprotocol%3Dredis",
            400,
            "all protocols together",
        ),
        (
            "labelSelector=ebpfscaler.io%2Fpod%3Da",
            400,
            "ask for podsignals",
        ),
        (
            "labelSelector=ebpfscaler.io%2Fnode%3Dn1",
            400,
            "ask for podsignals",
        ),
        (
            "labelSelector=ebpfscaler.io%2Freplicaset%3Dx",
            400,
            "ask for the workload",
        ),
        ("labelSelector=a+b", 400, "unable to parse"),
        ("continue=abc", 400, "continue key is not valid"),
        ("includeObject=All", 400, "None, Metadata, Object"),
        (
            "resourceVersion=1&resourceVersionMatch=Exact",
            410,
            "no lists of the past",
        ),
        ("watch=1&resourceVersion=abc", 400, "not a number"),
        ("watch=1&sendInitialEvents=true", 422, "NotOlderThan"),
    ] {
        let failure = read(Resource::Workloads, query).unwrap_err();
        assert_eq!(failure.code, code, "{query}: {}", failure.message);
        assert!(
            failure.message.contains(says),
            "{query}: {}",
            failure.message
        );
    }
    read(Resource::Pods, "labelSelector=ebpfscaler.io%2Fnode%3Dn1").unwrap();
}

#[test]
fn watches_are_read_as_clients_write_them() {
    let watch = |query: &str| {
        let wanted = read(Resource::Workloads, &format!("watch=true&{query}")).unwrap();
        wanted.watch.unwrap()
    };
    let informer = watch("allowWatchBookmarks=true&resourceVersion=123&timeoutSeconds=420");
    assert_eq!(
        informer,
        WatchOptions {
            timeout: Duration::from_secs(420),
            version: Some(123),
            bookmarks: true,
            initial_events: false,
        }
    );
    let list = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    assert!(watch(list).initial_events && watch(list).version.is_none());
    assert_eq!(watch("resourceVersion=0").version, None);
    assert_eq!(watch("timeoutSeconds=999999").timeout, WATCH);
    assert_eq!(
        read(Resource::Workloads, "watch=false&limit=500")
            .unwrap()
            .watch,
        None
    );
}
