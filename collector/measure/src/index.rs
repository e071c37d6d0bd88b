//! Which pods there are: a state machine fed with what a watch says of pods and their owners. Answers
//! which pods a namespace and selector mean, also of pods that have just gone. Knows no API client.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::query::RESERVED_PREFIX;
use crate::selector::Selector;
use crate::time::Time;

/// A pod that has gone still counts in the windows in which it lived; the longest is 5 minutes.
const REMEMBER: u64 = 310_000_000;
/// At most this many gone pods are remembered.
const MAX_GONE: usize = 50_000;
/// So many former runs of a pod's containers are remembered: a crash loop fills no window with more.
const MAX_FORMER: usize = 16;
/// A pod has to be seen running this long before it is expected to be measured.
pub const SETTLE: u64 = 2_000_000;

/// A pod's phase as the kubelet reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Not all containers have started
    #[default]
    Pending,
    /// At least one container runs or restarts
    Running,
    /// All containers ended well
    Succeeded,
    /// All containers ended, one in failure
    Failed,
    /// The node can not be asked
    Unknown,
}

/// The controller of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerRef {
    /// Kind, as `ReplicaSet`
    pub kind: String,
    /// Name
    pub name: String,
    /// UID
    pub uid: Arc<str>,
}

/// A container of a pod: an ordinary one, an init or an ephemeral one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Its name in the pod
    pub name: Arc<str>,
    /// Of its present or last run, as its cgroup has it; none before the first
    pub id: Option<Arc<str>>,
    /// Whether it runs
    pub running: bool,
}

/// What is kept of a pod object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// metadata.uid
    pub uid: Arc<str>,
    /// metadata.namespace
    pub namespace: Arc<str>,
    /// metadata.name
    pub name: String,
    /// metadata.labels
    pub labels: BTreeMap<String, String>,
    /// The owner reference that is a controller
    pub owner: Option<OwnerRef>,
    /// spec.nodeName
    pub node: Option<Arc<str>>,
    /// status.phase
    pub phase: Phase,
    /// Condition Ready
    pub ready: bool,
    /// status.startTime, Unix seconds
    pub started: Option<i64>,
    /// Whether metadata.deletionTimestamp is set
    pub deleting: bool,
    /// A static pod's cgroup carries this instead of the UID of its mirror in the API
    pub mirror_hash: Option<Arc<str>>,
    /// spec and status of its containers
    pub containers: Vec<Container>,
}

/// A pod in the index.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What the API says of it
    pub facts: PodFacts,
    /// Since when it is known to run
    pub running_since: Option<Time>,
    /// When all of its containers were seen to have ended
    pub ended: Option<Time>,
    /// When it was deleted
    pub gone: Option<Time>,
    /// Names and ids of former runs of its containers, newest last
    pub former: Vec<(Arc<str>, Arc<str>)>,
}

impl Pod {
    /// When it was seen to be over, whether its object is still there or not.
    pub fn over(&self) -> Option<Time> {
        let ended = self.ended.into_iter().chain(self.gone);
        ended.min()
    }

    /// Whether the container of that name has had that id.
    pub fn ran_as(&self, name: &str, id: &str) -> bool {
        let now = self.facts.containers.iter();
        let mut now = now.filter_map(|c| Some((&c.name, c.id.as_ref()?)));
        let mut former = self.former.iter().map(|(name, id)| (name, id));
        let same = |(n, i): (&Arc<str>, &Arc<str>)| **n == *name && **i == *id;
        now.any(same) || former.any(same)
    }

    /// The former runs of its containers when `next` is what the API says.
    fn former_after(&self, next: &PodFacts) -> Vec<(Arc<str>, Arc<str>)> {
        let mut former = self.former.clone();
        for container in &self.facts.containers {
            let is_same = |c: &&Container| c.name == container.name;
            let after = next.containers.iter().find(is_same);
            if let Some(id) = &container.id
                && after.is_some_and(|after| after.id.as_ref() != Some(id))
            {
                former.push((container.name.clone(), id.clone()));
            }
        }
        let surplus = former.len().saturating_sub(MAX_FORMER);
        former.drain(..surplus);
        former
    }

    /// The UID that its cgroup carries.
    pub fn cgroup_uid(&self) -> &Arc<str> {
        self.facts.mirror_hash.as_ref().unwrap_or(&self.facts.uid)
    }

    /// Since when it has to be measured, if it has: running on its node for [`SETTLE`], not being deleted.
    /// A pod under deletion may be on a node that has died, and its work is being taken over.
    pub fn expected_since(&self, now: Time) -> Option<Time> {
        let since = self.running_since?.plus(SETTLE);
        let wanted = self.gone.is_none() && !self.facts.deleting && self.facts.node.is_some();
        (wanted && since <= now).then_some(since)
    }
}

#[derive(Clone, Debug)]
struct Owner {
    owner: Option<OwnerRef>,
    gone: Option<Time>,
}

/// Pods and owners.
#[derive(Clone, Debug, Default)]
pub struct Index {
    pods: HashMap<Arc<str>, Pod>,
    by_namespace: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Mirror hash to UID.
    mirrors: HashMap<Arc<str>, Arc<str>>,
    owners: HashMap<Arc<str>, Owner>,
    gone: usize,
}

impl Index {
    /// A pod is there or has changed. `listed`: it comes from a first listing, so it may have run for long.
    pub fn apply(&mut self, facts: PodFacts, listed: bool, now: Time) {
        let before = self.pods.get(&facts.uid);
        let running_since = match (facts.phase, before.and_then(|p| p.running_since)) {
            (Phase::Running, Some(since)) => Some(since),
            (Phase::Running, None) if listed => Some(now.minus(SETTLE)),
            (Phase::Running, None) => Some(now),
            _ => None,
        };
        let ended = match facts.phase {
            Phase::Succeeded | Phase::Failed => before.and_then(|p| p.ended).or(Some(now)),
            _ => None,
        };
        if before.is_some_and(|p| p.gone.is_some()) {
            self.gone -= 1;
        }
        self.by_namespace
            .entry(facts.namespace.clone())
            .or_default()
            .insert(facts.uid.clone());
        if let Some(hash) = &facts.mirror_hash {
            self.mirrors.insert(hash.clone(), facts.uid.clone());
        }
        let former = before.map(|p| p.former_after(&facts)).unwrap_or_default();
        let pod = Pod {
            facts,
            running_since,
            ended,
            gone: None,
            former,
        };
        self.pods.insert(pod.facts.uid.clone(), pod);
    }

    /// A pod was deleted; it still counts in the windows in which it lived.
    pub fn delete(&mut self, uid: &str, now: Time) {
        if let Some(pod) = self.pods.get_mut(uid)
            && pod.gone.is_none()
        {
            pod.gone = Some(now);
            self.gone += 1;
        }
    }

    /// A new full listing has come: pods that it does not name have gone meanwhile.
    pub fn retain(&mut self, listed: &std::collections::HashSet<Arc<str>>, now: Time) {
        for (uid, pod) in &mut self.pods {
            if pod.gone.is_none() && !listed.contains(uid) {
                pod.gone = Some(now);
                self.gone += 1;
            }
        }
    }

    /// An object that may own pods is there: its own controller, if it has one.
    pub fn apply_owner(&mut self, uid: Arc<str>, owner: Option<OwnerRef>) {
        self.owners.insert(uid, Owner { owner, gone: None });
    }

    /// An owner was deleted; pods that have just gone still name it.
    pub fn delete_owner(&mut self, uid: &str, now: Time) {
        if let Some(owner) = self.owners.get_mut(uid) {
            owner.gone.get_or_insert(now);
        }
    }

    /// A new full listing of owners has come.
    pub fn retain_owners(&mut self, listed: &std::collections::HashSet<Arc<str>>, now: Time) {
        for (uid, owner) in &mut self.owners {
            if !listed.contains(uid) {
                owner.gone.get_or_insert(now);
            }
        }
    }

    /// Every pod, also those that have gone lately.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// How many pods there are, without those that have gone.
    pub fn len(&self) -> usize {
        self.pods.len() - self.gone
    }

    /// Whether there is no pod.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pod whose cgroup carries `uid`.
    pub fn by_cgroup_uid(&self, uid: &str) -> Option<&Pod> {
        let uid = self.mirrors.get(uid).map_or(uid, |u| u);
        self.pods.get(uid)
    }

    /// Nodes on which pods run.
    pub fn nodes(&self) -> BTreeSet<Arc<str>> {
        let running = |p: &&Pod| p.gone.is_none() && p.facts.phase == Phase::Running;
        let pods = self.pods.values().filter(running);
        pods.filter_map(|p| p.facts.node.clone()).collect()
    }

    /// Namespaces that have pods, or had some lately, in order.
    pub fn namespaces(&self) -> BTreeSet<Arc<str>> {
        self.by_namespace.keys().cloned().collect()
    }

    /// The pods of a namespace, also those that have gone lately, in a stable order.
    pub fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Pod> {
        let uids = self.by_namespace.get(namespace).into_iter().flatten();
        uids.filter_map(|uid| self.pods.get(uid))
    }

    /// The pods of a namespace that `selector` picks, also those that have gone lately, in a stable order.
    pub fn matching<'a>(
        &'a self,
        namespace: &str,
        selector: &'a Selector,
    ) -> impl Iterator<Item = &'a Pod> {
        self.of_namespace(namespace)
            .filter(|pod| selector.matches(|key| self.label(pod, key)))
    }

    /// A label of the pod, or what a reserved key means for it.
    fn label<'a>(&'a self, pod: &'a Pod, key: &str) -> Option<&'a str> {
        let Some(reserved) = key.strip_prefix(RESERVED_PREFIX) else {
            return pod.facts.labels.get(key).map(String::as_str);
        };
        match reserved {
            "pod" => Some(&pod.facts.name),
            "node" => pod.facts.node.as_deref(),
            "deployment" => self.workload_of(pod, "Deployment"),
            "statefulset" => self.workload_of(pod, "StatefulSet"),
            "daemonset" => self.workload_of(pod, "DaemonSet"),
            // These may have an owner themselves; the pod is theirs all the same.
            "replicaset" => owned_by(pod, "ReplicaSet"),
            "job" => owned_by(pod, "Job"),
            "workload" => self.workload(pod).map(|w| w.1),
            _ => None,
        }
    }

    fn workload_of<'a>(&'a self, pod: &'a Pod, kind: &str) -> Option<&'a str> {
        let workload = self.workload(pod).filter(|w| w.0 == kind);
        workload.map(|(_, name)| name)
    }

    /// Kind and name of what owns the pod at the top: a Deployment, a StatefulSet, a Job's CronJob...
    pub fn workload<'a>(&'a self, pod: &'a Pod) -> Option<(&'a str, &'a str)> {
        let mut top = pod.facts.owner.as_ref()?;
        // Two levels are usual; the bound keeps a cycle from holding us.
        for _ in 0..4 {
            match self.owners.get(&top.uid) {
                Some(Owner {
                    owner: Some(next), ..
                }) => top = next,
                Some(Owner { owner: None, .. }) => break,
                None => {
                    // The ReplicaSet is not known yet, but a Deployment names it by its template's hash.
                    let hash = pod.facts.labels.get("pod-template-hash");
                    let by_hash = hash
                        .filter(|_| top.kind == "ReplicaSet")
                        .and_then(|h| top.name.strip_suffix(h.as_str())?.strip_suffix('-'));
                    if let Some(deployment) = by_hash {
                        return Some(("Deployment", deployment));
                    }
                    break;
                }
            }
        }
        Some((&top.kind, &top.name))
    }

    /// Forgets what went so long ago that no window needs it.
    pub fn sweep(&mut self, now: Time) {
        let mut oldest: Vec<(Time, Arc<str>)> = self
            .pods
            .iter()
            .filter_map(|(uid, pod)| Some((pod.gone?, uid.clone())))
            .collect();
        oldest.sort_unstable();
        let surplus = oldest.len().saturating_sub(MAX_GONE);
        for (i, (gone, uid)) in oldest.into_iter().enumerate() {
            if i < surplus || now.since(gone) > REMEMBER {
                self.forget(&uid);
            }
        }
        self.owners
            .retain(|_, o| o.gone.is_none_or(|t| now.since(t) <= REMEMBER));
    }

    fn forget(&mut self, uid: &Arc<str>) {
        let Some(pod) = self.pods.remove(uid) else {
            return;
        };
        self.gone -= 1;
        if let Some(hash) = &pod.facts.mirror_hash
            && self.mirrors.get(hash) == Some(uid)
        {
            self.mirrors.remove(hash);
        }
        if let Some(uids) = self.by_namespace.get_mut(&pod.facts.namespace) {
            uids.remove(uid);
            if uids.is_empty() {
                self.by_namespace.remove(&pod.facts.namespace);
            }
        }
    }
}

/// The name of the pod's own controller, if it is of this kind.
fn owned_by<'a>(pod: &'a Pod, kind: &str) -> Option<&'a str> {
    let owner = pod.facts.owner.as_ref().filter(|o| o.kind == kind);
    owner.map(|o| o.name.as_str())
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
