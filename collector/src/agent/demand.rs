//! Which families are measured: the defaults, and what any replica wants until its demand lapses. Pure; the
//! caller has the clock.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::probes::Family;

/// A replica repeats its demand long before; what it forgot to end ends by itself.
const LONGEST: Duration = Duration::from_secs(3600);

/// The union over replicas.
#[derive(Debug)]
pub struct Demand {
    defaults: BTreeSet<Family>,
    wanted: HashMap<(SocketAddr, Family), Instant>,
}

impl Demand {
    /// Only the defaults are wanted.
    pub fn new(defaults: impl IntoIterator<Item = Family>) -> Self {
        Self {
            defaults: defaults.into_iter().collect(),
            wanted: HashMap::new(),
        }
    }

    /// A replica wants these families for so long, and nothing else.
    pub fn want(
        &mut self,
        replica: SocketAddr,
        families: impl IntoIterator<Item = Family>,
        ttl: Duration,
        now: Instant,
    ) {
        self.wanted.retain(|(of, _), _| *of != replica);
        let until = now + ttl.min(LONGEST);
        self.wanted.extend(
            families
                .into_iter()
                .map(|family| ((replica, family), until)),
        );
    }

    /// What to measure now.
    pub fn families(&mut self, now: Instant) -> BTreeSet<Family> {
        self.wanted.retain(|_, until| *until > now);
        let wanted = self.wanted.keys().map(|(_, family)| *family);
        self.defaults.iter().copied().chain(wanted).collect()
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
        demand.want(a, [Family::RunQueue], Duration::from_secs(60), at(0));
        demand.want(b, [], Duration::from_secs(600), at(1));
        assert_eq!(demand.families(at(59)), BTreeSet::from(Family::ALL));
        assert_eq!(demand.families(at(60)), defaults);
        demand.want(a, [Family::RunQueue], Duration::from_secs(60), at(61));
        demand.want(a, [], Duration::from_secs(60), at(62));
        assert_eq!(demand.families(at(62)), defaults);
    }

    #[test]
    fn a_demand_without_an_end_has_one() {
        let start = Instant::now();
        let mut demand = Demand::new([]);
        let forever = Duration::from_secs(u64::from(u32::MAX));
        demand.want(
            "127.0.0.1:1".parse().unwrap(),
            [Family::RunQueue],
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
}
