use super::*;

const SECOND: u64 = 1_000_000;

fn at(seconds: u64) -> Time {
    Time(3600 * SECOND).plus(seconds * SECOND)
}

fn pod(name: &str) -> PodFacts {
    PodFacts {
        uid: name.into(),
        namespace: "shop".into(),
        name: name.into(),
        labels: BTreeMap::from([("app".into(), "web".into())]),
        node: Some("n1".into()),
        phase: Phase::Running,
        ..PodFacts::default()
    }
}

fn names(index: &Index, namespace: &str, selector: &str) -> Vec<String> {
    let selector = Selector::parse(selector).unwrap();
    let pods = index.matching(namespace, &selector);
    pods.map(|p| p.facts.name.clone()).collect()
}

fn owned_by(kind: &str, name: &str, uid: &str) -> Option<OwnerRef> {
    Some(OwnerRef {
        kind: kind.into(),
        name: name.into(),
        uid: uid.into(),
    })
}

#[test]
fn pods_are_found_by_namespace_and_selector() {
    let mut index = Index::default();
    index.apply(pod("a"), false, at(0));
    let mut other = pod("b");
    other.labels.insert("app".into(), "api".into());
    index.apply(other, false, at(0));
    let mut elsewhere = pod("c");
    elsewhere.namespace = "bank".into();
    index.apply(elsewhere, false, at(0));
    assert_eq!(names(&index, "shop", ""), ["a", "b"]);
    assert_eq!(names(&index, "shop", "app=web"), ["a"]);
    assert_eq!(names(&index, "bank", "app in (web,api)"), ["c"]);
    assert!(names(&index, "nowhere", "").is_empty());
    // Labels may change.
    let mut changed = pod("a");
    changed.labels.clear();
    index.apply(changed, false, at(1));
    assert!(names(&index, "shop", "app=web").is_empty());
}

#[test]
fn reserved_keys_describe_the_pod() {
    let mut index = Index::default();
    let mut web = pod("web-5f7-x");
    web.owner = owned_by("ReplicaSet", "web-5f7", "rs");
    index.apply(web, false, at(0));
    index.apply_owner("rs".into(), owned_by("Deployment", "web", "d"));
    let mut db = pod("db-0");
    db.owner = owned_by("StatefulSet", "db", "s");
    index.apply(db, false, at(0));
    for (name, kind, owner) in [
        ("log-n1", "DaemonSet", "log"),
        ("report-1-x", "Job", "report-1"),
    ] {
        let mut owned = pod(name);
        owned.owner = owned_by(kind, owner, owner);
        index.apply(owned, false, at(0));
    }
    for (selector, expected) in [
        ("ebpfscaler.io/deployment=web", vec!["web-5f7-x"]),
        ("ebpfscaler.io/statefulset=db", vec!["db-0"]),
        ("ebpfscaler.io/daemonset=log", vec!["log-n1"]),
        ("ebpfscaler.io/replicaset=web-5f7", vec!["web-5f7-x"]),
        ("ebpfscaler.io/job=report-1", vec!["report-1-x"]),
        (
            "ebpfscaler.io/workload in (web,db)",
            vec!["db-0", "web-5f7-x"],
        ),
        (
            "ebpfscaler.io/workload notin (web)",
            vec!["db-0", "log-n1", "report-1-x"],
        ),
        (
            "!ebpfscaler.io/deployment",
            vec!["db-0", "log-n1", "report-1-x"],
        ),
        ("ebpfscaler.io/pod=db-0,app=web", vec!["db-0"]),
        ("ebpfscaler.io/node=n2", vec![]),
    ] {
        assert_eq!(names(&index, "shop", selector), expected, "{selector}");
    }
}

#[test]
fn a_deployment_is_known_before_its_replica_set_is() {
    let mut index = Index::default();
    let mut web = pod("web-5f7-x");
    web.owner = owned_by("ReplicaSet", "web-5f7", "rs");
    web.labels.insert("pod-template-hash".into(), "5f7".into());
    index.apply(web, false, at(0));
    assert_eq!(
        names(&index, "shop", "ebpfscaler.io/deployment=web"),
        ["web-5f7-x"]
    );
}

#[test]
fn a_ring_of_owners_ends() {
    let mut index = Index::default();
    let mut odd = pod("odd");
    odd.owner = owned_by("A", "a", "ua");
    index.apply(odd, false, at(0));
    index.apply_owner("ua".into(), owned_by("B", "b", "ub"));
    index.apply_owner("ub".into(), owned_by("A", "a", "ua"));
    assert!(names(&index, "shop", "ebpfscaler.io/deployment").is_empty());
}

#[test]
fn a_pod_is_expected_once_it_has_run_for_two_seconds() {
    let mut index = Index::default();
    let expected = |index: &Index, time| index.pods().any(|p| p.expected_since(time).is_some());
    let mut young = pod("a");
    young.phase = Phase::Pending;
    index.apply(young.clone(), false, at(0));
    assert!(!expected(&index, at(10)));
    young.phase = Phase::Running;
    index.apply(young.clone(), false, at(10));
    assert!(!expected(&index, at(11)));
    // A change of labels or conditions does not start the time anew.
    index.apply(young.clone(), false, at(11));
    assert!(expected(&index, at(12)));
    young.deleting = true;
    index.apply(young.clone(), false, at(13));
    assert!(!expected(&index, at(13)), "it is on its way out");
    young.deleting = false;
    young.phase = Phase::Succeeded;
    index.apply(young, false, at(14));
    assert!(!expected(&index, at(20)), "it has ended");
}

#[test]
fn pods_of_a_first_listing_have_run_before() {
    let mut index = Index::default();
    index.apply(pod("a"), true, at(0));
    assert!(index.pods().all(|p| p.expected_since(at(0)).is_some()));
}

#[test]
fn what_is_gone_is_remembered_as_long_as_a_window_and_then_forgotten() {
    let mut index = Index::default();
    index.apply(pod("a"), false, at(0));
    index.apply(pod("b"), false, at(0));
    index.delete("a", at(10));
    index.delete("a", at(11));
    index.sweep(at(300));
    assert_eq!((names(&index, "shop", "").len(), index.len()), (2, 1));
    index.sweep(at(330));
    assert_eq!(names(&index, "shop", ""), ["b"]);
    // A listing after a lost watch tells of deletions too.
    index.retain(&std::collections::HashSet::new(), at(331));
    assert!(index.is_empty());
    index.sweep(at(1000));
    assert!(index.by_namespace.is_empty() && index.pods.is_empty());
}

#[test]
fn a_static_pod_is_found_by_the_uid_of_its_cgroup() {
    let mut index = Index::default();
    let mut mirror = pod("etcd-n1");
    mirror.mirror_hash = Some("0123abcd".into());
    index.apply(mirror, false, at(0));
    assert_eq!(
        index.by_cgroup_uid("0123abcd").unwrap().facts.name,
        "etcd-n1"
    );
    index.delete("etcd-n1", at(1));
    index.sweep(at(400));
    assert!(index.by_cgroup_uid("0123abcd").is_none() && index.mirrors.is_empty());
}
