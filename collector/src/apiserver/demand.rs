//! What somebody wants measured: a query or subscription holds a family, what it narrows by, and pods' requests inside TLS
//! for a while, and agents are told. Requests and network are always wanted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ebpf_scaler_measure::narrow::{Division, Divisions};
use ebpf_scaler_measure::{Family, Query, State, Time};
use ebpf_scaler_proto as proto;
use tokio::sync::watch;

/// Agents keep a family this long without being told again.
const TTL: Duration = Duration::from_secs(60);
/// No more narrowed queries than these are held; others get no answer but that they have been asked for.
const MAX_NARROWED: usize = 4096;
/// How long requests inside TLS stay wanted that nobody asks for any more. Subscriptions ask all the time, and probing
/// is dear, so it is not long.
const TLS_HOLD: u64 = 60_000_000;
/// No more selections of pods for requests inside TLS than these are held; others get no answer but that nodes have been
/// asked.
const MAX_TLS: usize = 4096;

/// By node, the UIDs of the pods of which requests inside TLS are wanted, as their cgroups carry them.
pub type TlsPods = BTreeMap<Arc<str>, BTreeSet<Arc<str>>>;

/// What agents are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Families, everywhere
    pub families: Vec<Family>,
    /// What is counted apart, by node
    pub divide: Arc<Divisions>,
    /// Whose requests inside TLS are counted
    pub tls_pods: Arc<TlsPods>,
}

/// What asking changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing: it is measured anyway
    Known,
    /// It is news, and has to be published
    News,
    /// There are too many narrowed queries: nobody is told of this one
    TooMany,
}

/// A query that narrows, and in which namespace.
type Narrowed = (String, Query);

/// Pods, as somebody has asked for them: namespace and selector.
type Picked = (String, String);

#[derive(Debug, Default)]
struct Held {
    families: BTreeMap<Family, Time>,
    narrowed: HashMap<Narrowed, Time>,
    tls: HashMap<Picked, (Query, Time)>,
}

/// The demand of everybody who asks this replica.
#[derive(Debug)]
pub struct Demand {
    hold: u64,
    held: Mutex<Held>,
    wanted: watch::Sender<Wanted>,
}

impl Demand {
    /// A demand holds for `hold`.
    pub fn new(hold: Duration) -> Self {
        let wanted = Wanted {
            families: vec![Family::Requests, Family::Network],
            ..Wanted::default()
        };
        Self {
            hold: u64::try_from(hold.as_micros()).unwrap_or(u64::MAX),
            held: Mutex::default(),
            wanted: watch::Sender::new(wanted),
        }
    }

    /// Somebody asks for something that needs `family`, what the query narrows by, and its requests inside TLS.
    pub fn ask(&self, family: Family, namespace: &str, query: &Query, now: Time) -> Asked {
        if family != Family::RunQueue && query.narrow.is_whole() && !query.tls {
            return Asked::Known;
        }
        let until = now.plus(self.hold);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut asked = Asked::Known;
        if family == Family::RunQueue && held.families.insert(family, until).is_none() {
            asked = Asked::News;
        }
        if !query.narrow.is_whole() {
            let narrowed = (namespace.to_owned(), query.clone());
            if let Some(known) = held.narrowed.get_mut(&narrowed) {
                *known = until;
            } else if held.narrowed.len() < MAX_NARROWED {
                held.narrowed.insert(narrowed, until);
                asked = Asked::News;
            } else {
                // A family that is news as well is published with the next tick.
                asked = Asked::TooMany;
            }
        }
        if query.tls {
            let picked = (namespace.to_owned(), query.selector.to_string());
            let until = now.plus(TLS_HOLD);
            if let Some((_, known)) = held.tls.get_mut(&picked) {
                *known = until;
            } else if held.tls.len() < MAX_TLS {
                held.tls.insert(picked, (query.clone(), until));
                asked = Asked::News;
            } else {
                asked = Asked::TooMany;
            }
        }
        asked
    }

    /// Lets lapse what nobody has asked for, and finds out anew which pods are meant.
    pub fn publish(&self, state: &State, now: Time) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.families.retain(|_, until| *until > now);
        held.narrowed.retain(|_, until| *until > now);
        let mut families = vec![Family::Requests, Family::Network];
        families.extend(held.families.keys());
        let mut divide = Divisions::new();
        for (namespace, query) in held.narrowed.keys() {
            state.divide(namespace, query, &mut divide);
        }
        held.tls.retain(|_, (_, until)| *until > now);
        let mut tls_pods = TlsPods::new();
        for ((namespace, _), (query, _)) in &held.tls {
            for pod in state.index.matching(namespace, &query.selector) {
                let node = pod.facts.node.as_ref().filter(|_| pod.gone.is_none());
                if let Some(node) = node {
                    let uids = tls_pods.entry(node.clone()).or_default();
                    uids.insert(pod.cgroup_uid().clone());
                }
            }
        }
        // Under the lock: an older demand must not come last.
        self.wanted.send_if_modified(|old| {
            let changed =
                old.families != families || *old.divide != divide || *old.tls_pods != tls_pods;
            if changed {
                *old = Wanted {
                    families,
                    divide: Arc::new(divide),
                    tls_pods: Arc::new(tls_pods),
                };
            }
            changed
        });
    }

    /// What is wanted, as it changes.
    pub fn watch(&self) -> watch::Receiver<Wanted> {
        self.wanted.subscribe()
    }

    /// The message that tells the agent of a node.
    pub fn message(wanted: &Wanted, node: &str) -> proto::Want {
        let families = wanted.families.iter().map(|f| to_proto(*f).into());
        let divide = wanted.divide.get(node).into_iter().flatten();
        let tls_pods = wanted.tls_pods.get(node).into_iter().flatten();
        proto::Want {
            families: families.collect(),
            ttl_seconds: u32::try_from(TTL.as_secs()).unwrap_or(u32::MAX),
            divide: divide.map(|(uid, d)| division(uid, d)).collect(),
            tls_pods: tls_pods.map(|uid| uid.to_string()).collect(),
        }
    }
}

fn division(uid: &str, division: &Division) -> proto::Division {
    proto::Division {
        pod_uid: uid.to_owned(),
        ports: division.ports.iter().map(|port| (*port).into()).collect(),
        containers: division.containers,
    }
}

/// The wire's name of a family.
pub fn to_proto(family: Family) -> proto::Family {
    match family {
        Family::Requests => proto::Family::Requests,
        Family::Network => proto::Family::Network,
        Family::RunQueue => proto::Family::Runqueue,
        Family::Tls => proto::Family::Tls,
    }
}

/// The family of a number on the wire; what a newer agent adds is `None`.
pub fn from_proto(family: i32) -> Option<Family> {
    match proto::Family::try_from(family) {
        Ok(proto::Family::Requests) => Some(Family::Requests),
        Ok(proto::Family::Network) => Some(Family::Network),
        Ok(proto::Family::Runqueue) => Some(Family::RunQueue),
        Ok(proto::Family::Tls) => Some(Family::Tls),
        Ok(proto::Family::Unspecified) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use ebpf_scaler_measure::index::PodFacts;

    use super::*;

    #[test]
    fn a_query_switches_a_family_on_and_it_lapses_by_itself() {
        let demand = Demand::new(Duration::from_secs(600));
        let (state, all) = (State::default(), Query::default());
        let always = vec![Family::Requests, Family::Network];
        let mut wanted = demand.watch();
        let ask = |family, now| demand.ask(family, "shop", &all, Time(now));
        assert_eq!(ask(Family::Requests, 0), Asked::Known);
        assert_eq!(ask(Family::RunQueue, 0), Asked::News);
        demand.publish(&state, Time(0));
        let has = |wanted: &Wanted| wanted.families.contains(&Family::RunQueue);
        assert!(has(&wanted.borrow_and_update()));
        assert_eq!(ask(Family::RunQueue, 300_000_000), Asked::Known);
        demand.publish(&state, Time(899_000_000));
        assert!(has(&wanted.borrow_and_update()));
        demand.publish(&state, Time(900_000_001));
        assert_eq!(wanted.borrow_and_update().families, always);
    }

    #[test]
    fn what_a_query_narrows_by_is_wanted_of_the_pods_it_means_on_their_nodes() {
        let demand = Demand::new(Duration::from_secs(600));
        let mut state = State::default();
        let query = Query::parse("app=web,ebpfscaler.io/port in (80,81)").unwrap();
        let ask = |now| demand.ask(Family::Requests, "shop", &query, Time(now));
        assert_eq!((ask(0), ask(1)), (Asked::News, Asked::Known));
        for (uid, node, app) in [("a", "n1", "web"), ("b", "n2", "web"), ("c", "n1", "db")] {
            let pod = PodFacts {
                uid: uid.into(),
                namespace: "shop".into(),
                node: Some(node.into()),
                labels: [("app".to_owned(), app.to_owned())].into(),
                ..PodFacts::default()
            };
            state.index.apply(pod, false, Time(0));
        }
        demand.publish(&state, Time(1));
        let told = |node| Demand::message(&demand.watch().borrow(), node).divide;
        let (n1, n2) = (told("n1"), told("n2"));
        assert_eq!((n1.len(), n1[0].pod_uid.as_str()), (1, "a"));
        assert_eq!(
            (n1[0].ports.clone(), n1[0].containers),
            (vec![80, 81], false)
        );
        assert_eq!(n2[0].pod_uid, "b");
        state.index.delete("a", Time(2));
        demand.publish(&state, Time(2));
        assert!(told("n1").is_empty(), "a pod that has gone");
        demand.publish(&state, Time(600_000_002));
        assert!(told("n2").is_empty(), "it has lapsed");
    }
    #[test]
    fn narrowed_queries_beyond_the_limit_are_told_of_until_others_lapse() {
        let demand = Demand::new(Duration::from_secs(600));
        let ask = |n: usize, now| {
            let query = Query::parse(&format!("app=web,ebpfscaler.io/port={}", n + 1)).unwrap();
            demand.ask(Family::Requests, "shop", &query, Time(now))
        };
        assert!((0..MAX_NARROWED).all(|n| ask(n, 0) == Asked::News));
        assert_eq!(ask(MAX_NARROWED, 1), Asked::TooMany);
        assert_eq!(ask(0, 1), Asked::Known, "what is held stays");
        demand.publish(&State::default(), Time(600_000_001));
        assert_eq!(ask(MAX_NARROWED, 600_000_002), Asked::News);
    }
}
