//! Years of rotation in a moment: a cluster of plain values, a clock that jumps, and after every
//! step the question whether every client could still verify the server.

use super::{
    plan::{Action, ApiService, Ca, CaCert, Leaf, Lifetimes, State, Unix, bundle, plan},
    *,
};

const LIFETIMES: Lifetimes = Lifetimes {
    ca: 365 * DAY,
    leaf: 30 * DAY,
    propagation: 300,
};
const DAY: i64 = 86_400;

/// What the cluster holds. A CA is a number here; its PEM is that number.
struct World {
    now: Unix,
    state: State,
    leaf_by: Option<String>,
    made: u32,
    log: Vec<&'static str>,
    /// Bundles as readers see them: each change with its time.
    seen: Vec<(Unix, String)>,
}

impl World {
    fn new() -> Self {
        Self {
            now: 1_000_000,
            state: State {
                ca: None,
                leaf: None,
                bundle: None,
                bundle_certs: vec![],
                api_services: vec![
                    ("external".into(), ApiService::Ours(String::new())),
                    ("custom".into(), ApiService::Absent),
                ],
            },
            leaf_by: None,
            made: 0,
            log: vec![],
            seen: vec![],
        }
    }

    fn api_service(&mut self, name: &str, found: ApiService) {
        let mut all = self.state.api_services.iter_mut();
        all.find(|(n, _)| n == name).unwrap().1 = found;
    }

    fn make(&mut self) -> CaCert {
        self.made += 1;
        CaCert {
            pem: format!("ca{}", self.made),
            not_before: self.now,
            not_after: self.now + LIFETIMES.ca,
            published: self.now,
        }
    }

    /// The facts that the store derives from the objects.
    fn derive(&mut self) {
        let now = self.now;
        let ca = self.state.ca.clone();
        let by = self.leaf_by.clone().unwrap_or_default();
        if let Some(leaf) = &mut self.state.leaf {
            leaf.by_current = ca.as_ref().is_some_and(|c| c.current.pem == by);
            leaf.by_bundle = ca
                .as_ref()
                .is_some_and(|c| bundle(c).lines().any(|l| l == by));
        }
        if let Some(ca) = &mut self.state.ca {
            ca.previous.retain(|c| c.not_after > now);
        }
    }

    fn settle(&mut self) {
        for _ in 0..ROUNDS {
            self.derive();
            let actions = plan(&self.state, &LIFETIMES, self.now);
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.log.push(name(&action));
                self.apply(action);
            }
        }
        panic!("does not settle: {:?}", self.log);
    }

    fn apply(&mut self, action: Action) {
        let now = self.now;
        match action {
            Action::CreateCa { keep } => {
                let current = self.make();
                self.state.ca = Some(Ca {
                    current,
                    next: None,
                    previous: keep,
                    promoted: now,
                });
            }
            Action::IntroduceNext => {
                let next = self.make();
                self.state.ca.as_mut().unwrap().next = Some(next);
            }
            Action::Promote => {
                let ca = self.state.ca.as_mut().unwrap();
                let next = ca.next.take().unwrap();
                ca.previous
                    .insert(0, std::mem::replace(&mut ca.current, next));
                ca.promoted = now;
            }
            Action::DropPrevious => self.state.ca.as_mut().unwrap().previous.clear(),
            Action::PublishBundle(b) => {
                self.seen.push((now, b.clone()));
                self.state.bundle = Some(b);
            }
            Action::PatchApiService { name, bundle } => {
                self.api_service(&name, ApiService::Ours(bundle))
            }
            Action::IssueLeaf(_) => {
                let ca = self.state.ca.as_ref().unwrap();
                self.leaf_by = Some(ca.current.pem.clone());
                self.state.leaf = Some(Leaf {
                    not_before: now,
                    not_after: (now + LIFETIMES.leaf).min(ca.current.not_after),
                    by_current: true,
                    by_bundle: true,
                });
            }
        }
    }

    /// A slow reader still has the bundle of `lag` ago; a quick one has today's.
    fn everybody_can_verify(&self) -> bool {
        let leaf_by = self.leaf_by.as_deref().unwrap_or_default();
        let leaf = self.state.leaf.as_ref().unwrap();
        let old = self.seen.iter().rev().find(|(t, _)| *t <= self.now - 299);
        leaf.not_after > self.now
            && [self.seen.last(), old]
                .into_iter()
                .flatten()
                .all(|(_, b)| b.lines().any(|l| l == leaf_by))
    }
}

#[test]
fn an_empty_cluster_gets_everything_in_one_go() {
    let mut w = World::new();
    w.settle();
    assert_eq!(
        w.log,
        [
            "create-ca",
            "publish-bundle",
            "patch-api-service",
            "issue-certificate"
        ]
    );
    assert!(w.everybody_can_verify());
}

#[test]
fn three_years_pass_and_every_client_could_verify_all_the_time() {
    let mut w = World::new();
    w.settle();
    let end = w.now + 3 * 365 * DAY;
    while w.now < end {
        // Small steps while a rotation is in progress, large ones in between.
        let busy = w
            .state
            .ca
            .as_ref()
            .is_some_and(|c| c.next.is_some() || !c.previous.is_empty());
        w.now += if busy { 60 } else { DAY / 2 };
        w.settle();
        assert!(w.everybody_can_verify(), "at {} after {:?}", w.now, w.log);
    }
    let count = |what| w.log.iter().filter(|l| **l == what).count();
    assert!((4..=5).contains(&count("promote-next-ca")), "{:?}", w.log);
    assert_eq!(count("promote-next-ca"), count("drop-previous-ca"));
    assert_eq!(count("issue-certificate"), 1);
    assert!(w.state.ca.unwrap().previous.is_empty());
}

#[test]
fn a_lost_ca_is_replaced_without_a_moment_in_which_nobody_can_verify() {
    let mut w = World::new();
    w.settle();
    w.now += DAY;
    w.state.bundle_certs = vec![w.state.ca.as_ref().unwrap().current.clone()];
    w.state.ca = None;
    w.log.clear();
    w.settle();
    assert_eq!(w.log, ["create-ca", "publish-bundle", "patch-api-service"]);
    assert!(w.everybody_can_verify());
    for _ in 0..20 {
        w.now += 60;
        w.settle();
        assert!(w.everybody_can_verify(), "{:?}", w.log);
    }
    assert!(w.log.contains(&"rotate-certificate") && w.log.contains(&"drop-previous-ca"));
}

#[test]
fn whatever_is_deleted_comes_back() {
    let mut w = World::new();
    w.settle();
    w.now += DAY;
    w.log.clear();
    w.state.bundle = None;
    w.settle();
    w.state.leaf = None;
    w.settle();
    w.api_service("external", ApiService::Ours("somebody emptied it".into()));
    w.settle();
    assert_eq!(
        w.log,
        ["publish-bundle", "issue-certificate", "patch-api-service"]
    );
}

#[test]
fn a_foreign_api_service_is_left_alone() {
    let mut w = World::new();
    let keda = ApiService::Foreign("keda/keda-operator-metrics-apiserver".into());
    w.api_service("external", keda);
    w.settle();
    assert_eq!(w.log, ["create-ca", "publish-bundle", "issue-certificate"]);
}

#[test]
fn each_api_service_of_ours_gets_the_bundle_whatever_the_others_are() {
    let mut w = World::new();
    let keda = ApiService::Foreign("keda/keda-operator-metrics-apiserver".into());
    w.api_service("external", keda.clone());
    w.settle();
    w.log.clear();
    // Custom metrics are switched on later.
    w.api_service("custom", ApiService::Ours(String::new()));
    w.settle();
    assert_eq!(w.log, ["patch-api-service"]);
    let bundle = w.state.bundle.clone().unwrap();
    let expected = [
        ("external".to_owned(), keda),
        ("custom".to_owned(), ApiService::Ours(bundle)),
    ];
    assert_eq!(w.state.api_services, expected);
}

#[test]
fn a_certificate_that_nobody_can_verify_is_replaced_at_once() {
    let mut w = World::new();
    w.settle();
    w.now += DAY;
    w.leaf_by = Some("somebody else's".into());
    w.log.clear();
    w.settle();
    assert_eq!(w.log, ["issue-certificate"]);
}
