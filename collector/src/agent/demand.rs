//! What is measured: the default families, what any replica wants besides, which parts of pods it wants counted apart, and
//! of which pods requests inside TLS, each until the demand lapses. Pure; the caller has the clock.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::probes::Family;

/// A replica repeats its demand long before; what it forgot to end ends by itself.
const LONGEST: Duration = Duration::from_secs(3600);
/// More ports of a pod than this are not counted apart, whatever replicas want.
pub const MAX_PORTS: usize = 8;
/// More pods than a node has.
const MOST_PODS: usize = 4096;

/// What of a pod is to be counted apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Division {
    /// Local ports, TCP and UDP
    pub ports: BTreeSet<u16>,
    /// Each container
    pub containers: bool,
}

/// One replica's demand.
#[derive(Debug)]
struct Wanted {
    until: Instant,
    families: Vec<Family>,
    divide: HashMap<String, Division>,
    tls: BTreeSet<String>,
}

/// The union over replicas.
#[derive(Debug)]
pub struct Demand {
    defaults: BTreeSet<Family>,
    wanted: HashMap<SocketAddr, Wanted>,
}

impl Demand {
    /// Only the defaults are wanted.
    pub fn new(defaults: impl IntoIterator<Item = Family>) -> Self {
        Self {
            defaults: defaults.into_iter().collect(),
            wanted: HashMap::new(),
        }
    }

    /// A replica wants these families and parts of pods, by UID, for so long, and nothing else.
    pub fn want(
        &mut self,
        replica: SocketAddr,
        families: impl IntoIterator<Item = Family>,
        divide: HashMap<String, Division>,
        ttl: Duration,
        now: Instant,
    ) {
        let wanted = Wanted {
            until: now + ttl.min(LONGEST),
            families: families.into_iter().collect(),
            divide,
            tls: BTreeSet::new(),
        };
        self.wanted.insert(replica, wanted);
    }

    /// With what a replica has just wanted it wants requests inside TLS of these pods, by UID.
    pub fn want_tls(&mut self, replica: SocketAddr, pods: impl IntoIterator<Item = String>) {
        if let Some(wanted) = self.wanted.get_mut(&replica) {
            wanted.tls = pods.into_iter().take(MOST_PODS).collect();
        }
    }

    /// Of which pods requests inside TLS are wanted now.
    pub fn tls(&mut self, now: Instant) -> BTreeSet<String> {
        self.wanted.retain(|_, wanted| wanted.until > now);
        let pods = self.wanted.values().flat_map(|w| &w.tls);
        pods.cloned().collect()
    }

    /// What to measure now.
    pub fn families(&mut self, now: Instant) -> BTreeSet<Family> {
        self.wanted.retain(|_, wanted| wanted.until > now);
        let wanted = self.wanted.values().flat_map(|w| &w.families);
        self.defaults.iter().chain(wanted).copied().collect()
    }

    /// What to count apart now, by pod UID.
    pub fn divisions(&mut self, now: Instant) -> HashMap<String, Division> {
        self.wanted.retain(|_, wanted| wanted.until > now);
        let mut all: HashMap<String, Division> = HashMap::new();
        for (uid, division) in self.wanted.values().flat_map(|w| &w.divide) {
            let union = all.entry(uid.clone()).or_default();
            union.containers |= division.containers;
            union.ports.extend(&division.ports);
        }
        for division in all.values_mut() {
            while division.ports.len() > MAX_PORTS {
                division.ports.pop_last();
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_replica_is_enough_and_none_ends_anothers_demand() {
        let (a, b) = (
            "127.0.0.1:1".parse().unwrap(),
            "127.0.0.1:2".parse().unwrap(),
        );
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let defaults = BTreeSet::from([Family::Requests, Family::Network]);
        let mut demand = Demand::new(defaults.clone());
        let want = |demand: &mut Demand, of, families: &[Family], ttl, now| {
            let ttl = Duration::from_secs(ttl);
            demand.want(of, families.to_vec(), HashMap::new(), ttl, now);
        };
        want(&mut demand, a, &[Family::RunQueue], 60, at(0));
        want(&mut demand, b, &[], 600, at(1));
        let all = BTreeSet::from([Family::Requests, Family::Network, Family::RunQueue]);
        assert_eq!(demand.families(at(59)), all);
        assert_eq!(demand.families(at(60)), defaults);
        want(&mut demand, a, &[Family::RunQueue], 60, at(61));
        want(&mut demand, a, &[], 60, at(62));
        assert_eq!(demand.families(at(62)), defaults);
    }

    #[test]
    fn pods_are_wanted_by_any_replica_until_none_does() {
        let (a, b) = (
            "127.0.0.1:1".parse().unwrap(),
            "127.0.0.1:2".parse().unwrap(),
        );
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut demand = Demand::new([]);
        let want = |demand: &mut Demand, of, pods: &[&str], ttl, now| {
            demand.want(of, [], HashMap::new(), Duration::from_secs(ttl), now);
            demand.want_tls(of, pods.iter().map(|n| (*n).to_owned()));
        };
        want(&mut demand, a, &["one", "two"], 60, at(0));
        want(&mut demand, b, &["two", "three"], 30, at(0));
        assert_eq!(demand.tls(at(29)).len(), 3);
        assert!(demand.tls(at(30)).iter().eq(["one", "two"]));
        want(&mut demand, a, &["two"], 60, at(31));
        assert!(demand.tls(at(32)).iter().eq(["two"]));
        assert!(demand.tls(at(91)).is_empty());
    }

    #[test]
    fn a_demand_without_an_end_has_one() {
        let start = Instant::now();
        let mut demand = Demand::new([]);
        let forever = Duration::from_secs(u64::from(u32::MAX));
        demand.want(
            "127.0.0.1:1".parse().unwrap(),
            [Family::RunQueue],
            HashMap::new(),
            forever,
            start,
        );
        assert!(
            !demand
                .families(start + LONGEST - Duration::from_secs(1))
                .is_empty()
        );
        assert!(demand.families(start + LONGEST).is_empty());
    }

    #[test]
    fn what_replicas_want_apart_adds_up_and_is_bounded() {
        let start = Instant::now();
        let mut demand = Demand::new([]);
        let want = |ports: std::ops::Range<u16>, containers| {
            let ports = ports.collect();
            HashMap::from([("pod".to_owned(), Division { ports, containers })])
        };
        for (replica, wanted, ttl) in [
            ("127.0.0.1:1", want(1..3, false), 60),
            ("127.0.0.1:2", want(2..4, true), 30),
        ] {
            let ttl = Duration::from_secs(ttl);
            demand.want(replica.parse().unwrap(), [], wanted, ttl, start);
        }
        assert_eq!(demand.divisions(start), want(1..4, true));
        let later = start + Duration::from_secs(30);
        assert_eq!(demand.divisions(later), want(1..3, false));
        let many = want(1..60_000, false);
        let ttl = Duration::from_secs(60);
        demand.want("127.0.0.1:3".parse().unwrap(), [], many, ttl, later);
        assert_eq!(demand.divisions(later)["pod"].ports.len(), MAX_PORTS);
    }
}
