//! What to do about our certificates: state and time in, actions out. Never reads a clock or talks
//! to a cluster, so that years of rotation run in a test.
//!
//! A new CA is published beside the old one first, signs only after everybody has had time to see
//! it, and the old one stays published until nothing that it signed is served any more.

/// Seconds since 1970.
pub type Unix = i64;

/// How long things live; all in seconds.
#[derive(Clone, Debug)]
pub struct Lifetimes {
    /// Of a CA.
    pub ca: i64,
    /// Of a serving certificate.
    pub leaf: i64,
    /// From publishing a bundle until every reader has certainly seen it: kubelets refresh mounted
    /// ConfigMaps within about a minute and a half.
    pub propagation: i64,
}

/// A CA certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaCert {
    /// The certificate.
    pub pem: String,
    /// Begin and end of its validity.
    pub not_before: Unix,
    /// End of its validity.
    pub not_after: Unix,
    /// When it was first put into the bundle.
    pub published: Unix,
}

/// Our CAs: the one that signs, the one that will, and those whose leaves may still be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ca {
    /// Signs.
    pub current: CaCert,
    /// Published, but does not sign yet.
    pub next: Option<CaCert>,
    /// Still published.
    pub previous: Vec<CaCert>,
    /// When `current` began to sign.
    pub promoted: Unix,
}

/// The serving certificate as it is in its Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Begin of its validity.
    pub not_before: Unix,
    /// End of its validity.
    pub not_after: Unix,
    /// Chains to the current CA, names everything it should, and its key fits.
    pub by_current: bool,
    /// The same, but for any CA of the published bundle.
    pub by_bundle: bool,
}

/// An APIService that we may serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiService {
    /// There is none.
    Absent,
    /// It points to somebody else's service, named here.
    Foreign(String),
    /// It points to ours and trusts this bundle.
    Ours(String),
}

/// All that the cluster has of ours. What does not parse counts as absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// From Secret ebpf-scaler-ca.
    pub ca: Option<Ca>,
    /// From Secret ebpf-scaler-apiserver-tls.
    pub leaf: Option<Leaf>,
    /// From ConfigMap ebpf-scaler-ca-bundle.
    pub bundle: Option<String>,
    /// CA certificates that `bundle` holds, still valid.
    pub bundle_certs: Vec<CaCert>,
    /// Of each APIService that we may serve, by name.
    pub api_services: Vec<(String, ApiService)>,
}

/// Why a serving certificate is issued; for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// There is none, or nobody could verify it.
    Unusable,
    /// A third of its life is left.
    Expiring,
    /// The CA that signed it is being retired.
    Rotation,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a CA that signs. `keep` stay published, so that what they signed remains trusted.
    CreateCa {
        /// Certificates of a lost CA.
        keep: Vec<CaCert>,
    },
    /// Make and publish the CA that will sign.
    IntroduceNext,
    /// Let it sign.
    Promote,
    /// Stop publishing those that no longer sign.
    DropPrevious,
    /// Write the bundle to the ConfigMap.
    PublishBundle(String),
    /// Write the bundle to an APIService.
    PatchApiService {
        /// Its name.
        name: String,
        /// The bundle.
        bundle: String,
    },
    /// Issue a serving certificate by the current CA.
    IssueLeaf(Cause),
}

/// The bundle that belongs to these CAs: the one that signs first.
#[must_use]
pub fn bundle(ca: &Ca) -> String {
    std::iter::once(&ca.current)
        .chain(&ca.next)
        .chain(&ca.previous)
        .map(|c| format!("{}\n", c.pem.trim_end()))
        .collect()
}

/// The actions to carry out now, in this order. After an action on the CA itself the state is to be
/// read again: it comes alone.
#[must_use]
pub fn plan(state: &State, lifetimes: &Lifetimes, now: Unix) -> Vec<Action> {
    let Some(ca) = state.ca.as_ref().filter(|ca| ca.current.not_after > now) else {
        return vec![Action::CreateCa {
            keep: state.bundle_certs.clone(),
        }];
    };
    if let Some(action) = ca_action(state, ca, lifetimes, now) {
        return vec![action];
    }

    let mut actions = Vec::new();
    let bundle = bundle(ca);
    if state.bundle.as_ref() != Some(&bundle) {
        actions.push(Action::PublishBundle(bundle.clone()));
    }
    for (name, api_service) in &state.api_services {
        if matches!(api_service, ApiService::Ours(b) if *b != bundle) {
            actions.push(Action::PatchApiService {
                name: name.clone(),
                bundle: bundle.clone(),
            });
        }
    }
    if let Some(cause) = leaf_cause(state, ca, lifetimes, now) {
        actions.push(Action::IssueLeaf(cause));
    }
    actions
}

fn ca_action(state: &State, ca: &Ca, lifetimes: &Lifetimes, now: Unix) -> Option<Action> {
    let seen = |published: Unix| now - published >= lifetimes.propagation;
    match &ca.next {
        Some(next) if seen(next.published) => return Some(Action::Promote),
        Some(_) => {}
        None => {
            // A leaf never outlives the CA that signed it, so a third of a CA's life is left for
            // the change: far more than the leaf's renewal and the propagation take.
            if expiring(ca.current.not_before, ca.current.not_after, now) {
                return Some(Action::IntroduceNext);
            }
        }
    }
    let leaf_done = state.leaf.as_ref().is_some_and(|l| l.by_current);
    if !ca.previous.is_empty() && leaf_done && seen(ca.promoted.max(ca.current.published)) {
        // Servers load a new leaf within seconds; the same delay is ample for them.
        let leaf_loaded = state.leaf.as_ref().is_some_and(|l| seen(l.not_before));
        if leaf_loaded || ca.previous.iter().all(|c| c.not_after <= now) {
            return Some(Action::DropPrevious);
        }
    }
    None
}

fn leaf_cause(state: &State, ca: &Ca, lifetimes: &Lifetimes, now: Unix) -> Option<Cause> {
    let leaf = match &state.leaf {
        Some(leaf) if leaf.not_after > now && leaf.by_bundle => leaf,
        _ => return Some(Cause::Unusable),
    };
    if !leaf.by_current {
        // Wait until those who verify know the CA that signs now, as long as the old leaf serves.
        return (now - ca.current.published >= lifetimes.propagation).then_some(Cause::Rotation);
    }
    expiring(leaf.not_before, leaf.not_after, now).then_some(Cause::Expiring)
}

/// Whether two thirds of a life are over.
fn expiring(not_before: Unix, not_after: Unix, now: Unix) -> bool {
    let life = (not_after - not_before).max(0);
    not_after - now <= life / 3
}
