//! Which families somebody wants measured: a query or subscription holds a family for a while, and agents
//! are told. Requests and network are always wanted.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ebpf_scaler_measure::{Family, Time};
use ebpf_scaler_proto as proto;
use tokio::sync::watch;

/// Agents keep a family this long without being told again.
const TTL: Duration = Duration::from_secs(60);

/// The demand of everybody who asks this replica.
#[derive(Debug)]
pub struct Demand {
    hold: u64,
    held: Mutex<BTreeMap<Family, Time>>,
    wanted: watch::Sender<Vec<Family>>,
}

impl Demand {
    /// A demand holds a family for `hold`.
    pub fn new(hold: Duration) -> Self {
        Self {
            hold: u64::try_from(hold.as_micros()).unwrap_or(u64::MAX),
            held: Mutex::default(),
            wanted: watch::Sender::new(vec![Family::Requests, Family::Network]),
        }
    }

    /// Somebody asks for something that needs `family`.
    pub fn ask(&self, family: Family, now: Time) {
        if family != Family::RunQueue {
            return;
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let known = held.insert(family, now.plus(self.hold)).is_some();
        drop(held);
        if !known {
            self.publish(now);
        }
    }

    /// Lets lapse what nobody has asked for.
    pub fn publish(&self, now: Time) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, until| *until > now);
        let mut families = vec![Family::Requests, Family::Network];
        families.extend(held.keys().filter(|f| **f == Family::RunQueue));
        self.wanted.send_if_modified(|old| {
            let changed = *old != families;
            if changed {
                *old = families;
            }
            changed
        });
    }

    /// What is wanted, as it changes.
    pub fn watch(&self) -> watch::Receiver<Vec<Family>> {
        self.wanted.subscribe()
    }

    /// The message that tells an agent.
    pub fn message(families: &[Family]) -> proto::Want {
        let families = families.iter().map(|f| to_proto(*f).into()).collect();
        proto::Want {
            families,
            ttl_seconds: u32::try_from(TTL.as_secs()).unwrap_or(u32::MAX),
        }
    }
}

/// The wire's name of a family.
pub fn to_proto(family: Family) -> proto::Family {
    match family {
        Family::Requests => proto::Family::Requests,
        Family::Network => proto::Family::Network,
        Family::RunQueue => proto::Family::Runqueue,
    }
}

/// The family of a number on the wire; what a newer agent adds is `None`.
pub fn from_proto(family: i32) -> Option<Family> {
    match proto::Family::try_from(family) {
        Ok(proto::Family::Requests) => Some(Family::Requests),
        Ok(proto::Family::Network) => Some(Family::Network),
        Ok(proto::Family::Runqueue) => Some(Family::RunQueue),
        Ok(proto::Family::Unspecified) | Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_switches_a_family_on_and_it_lapses_by_itself() {
        let demand = Demand::new(Duration::from_secs(600));
        let always = vec![Family::Requests, Family::Network];
        let mut wanted = demand.watch();
        demand.ask(Family::Requests, Time(0));
        assert!(!wanted.has_changed().unwrap());
        demand.ask(Family::RunQueue, Time(0));
        assert!(wanted.borrow_and_update().contains(&Family::RunQueue));
        demand.ask(Family::RunQueue, Time(300_000_000));
        demand.publish(Time(899_000_000));
        assert!(wanted.borrow_and_update().contains(&Family::RunQueue));
        demand.publish(Time(900_000_001));
        assert_eq!(*wanted.borrow_and_update(), always);
    }
}
