//! Tells when somebody else keeps writing the caBundle of an APIService of ours, as KEDA's operator does that takes it
//! for its own (docs/coexist.md). Remembers what we wrote; writes nothing.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use tracing::{info, warn};

use super::plan::{Action, ApiService, State};

/// What we wrote last to each APIService, and who has undone it.
#[derive(Debug, Default)]
pub struct Contest(Mutex<BTreeMap<String, Entry>>);

#[derive(Debug)]
struct Entry {
    written: String,
    by: Option<String>,
}

impl Contest {
    /// Whether the action would write what we have written before, so that somebody has undone it. `by` is who
    /// wrote the field last, by its field manager. Told once for each.
    pub fn undone(&self, action: &Action, by: impl FnOnce(&str) -> Option<String>) -> bool {
        let Action::PatchApiService { name, bundle } = action else {
            return false;
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = all.get_mut(name).filter(|entry| entry.written == *bundle) else {
            return false;
        };
        let by = by(name).unwrap_or_else(|| "unknown".into());
        if entry.by.as_ref() != Some(&by) {
            warn!(
                api_service = name,
                manager = by,
                "somebody else writes the caBundle of our APIService: while it is theirs, kube-apiserver can not \
                 verify us and the API is not available. KEDA stops with --enable-apiservice-patching=false; \
                 see docs/coexist.md"
            );
            entry.by = Some(by);
        }
        true
    }

    /// Remembers an action that was carried out.
    pub fn done(&self, action: &Action) {
        if let Action::PatchApiService { name, bundle } = action {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let by = all.remove(name).and_then(|entry| entry.by);
            let written = bundle.clone();
            all.insert(name.clone(), Entry { written, by });
        }
    }

    /// Looks at what was found before anything is written: what we wrote and is still there is no longer contested.
    /// Gives the number that are.
    pub fn look(&self, state: &State) -> usize {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, found) in &state.api_services {
            let Some(entry) = all.get_mut(name) else {
                continue;
            };
            match found {
                ApiService::Ours(bundle) if *bundle != entry.written => {}
                ApiService::Ours(_) => {
                    if let Some(by) = entry.by.take() {
                        info!(
                            api_service = name,
                            manager = by,
                            "nobody else writes its caBundle any more"
                        );
                    }
                }
                // Somebody else's now, or gone: there is nothing to contest.
                _ => {
                    all.remove(name);
                }
            }
        }
        all.values().filter(|entry| entry.by.is_some()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch(bundle: &str) -> Action {
        Action::PatchApiService {
            name: "external".into(),
            bundle: bundle.into(),
        }
    }

    fn found(api_service: ApiService) -> State {
        State {
            ca: None,
            leaf: None,
            bundle: None,
            bundle_certs: vec![],
            api_services: vec![("external".into(), api_service)],
        }
    }

    fn ours(bundle: &str) -> State {
        found(ApiService::Ours(bundle.into()))
    }

    fn keda(_: &str) -> Option<String> {
        Some("keda".into())
    }

    #[test]
    fn a_bundle_that_is_written_again_and_again_is_contested_until_it_stays() {
        let contest = Contest::default();
        // The first time, and a new CA of our own, are nobody's doing.
        for bundle in ["one", "two"] {
            assert!(!contest.undone(&patch(bundle), keda));
            contest.done(&patch(bundle));
            assert_eq!(contest.look(&ours(bundle)), 0);
        }
        assert_eq!(contest.look(&ours("keda's")), 0, "not told yet");
        assert!(contest.undone(&patch("two"), keda));
        contest.done(&patch("two"));
        assert_eq!(contest.look(&ours("keda's")), 1);
        assert!(contest.undone(&patch("two"), |_| None));
        assert_eq!(contest.look(&ours("two")), 0);
    }

    #[test]
    fn an_api_service_that_is_not_ours_any_more_is_not_contested() {
        let contest = Contest::default();
        contest.done(&patch("one"));
        assert!(contest.undone(&patch("one"), keda));
        for gone in [ApiService::Foreign("keda/keda".into()), ApiService::Absent] {
            assert_eq!(contest.look(&found(gone)), 0);
        }
        // Installed anew it begins anew.
        assert!(!contest.undone(&patch("one"), keda));
        assert!(!contest.undone(&Action::Promote, keda));
    }
}
