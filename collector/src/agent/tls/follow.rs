//! Follows the demand for requests inside TLS: whose libraries are looked for, which are probed, and what stands in the
//! way. It decides nothing about who may ask.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{FileId, Finder, Found, Pods};
use crate::agent::kernel::Kernel;

/// How often sessions that nobody ended are cleared away.
const CLEAR: Duration = Duration::from_secs(10);
/// How long a library that could not be probed is left alone.
const TRY_AGAIN: Duration = Duration::from_secs(30);
const NOT_ALLOWED: &str = "somebody wants requests inside TLS to be counted, but this node's agent runs without \
                           --tls-uprobes (see config/tls)";

/// For whom requests inside TLS may be counted on this node.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allowed {
    /// For nobody
    #[default]
    Never,
    /// For the pods of scalers that ask for it
    Wanted,
    /// For every pod
    All,
}

/// What is done about it now.
#[derive(Debug)]
pub struct Follower {
    allowed: Allowed,
    finder: Option<Finder>,
    pods: Pods,
    /// Whether it is wanted and not allowed.
    refuse: bool,
    /// Whether these pods' processes have been looked at.
    looked: bool,
    /// Why not all is counted: of looking for libraries, and of probing them.
    trouble: Option<String>,
    refused: Vec<(FileId, String)>,
    try_again: Instant,
    next_clear: Instant,
    without_symbols: u64,
}

impl Follower {
    /// Nobody is followed yet. `finder` is none where it is never allowed.
    pub fn new(allowed: Allowed, finder: Option<Finder>, now: Instant) -> Follower {
        Follower {
            allowed,
            finder,
            pods: Pods::None,
            refuse: false,
            looked: false,
            trouble: None,
            refused: Vec::new(),
            try_again: now,
            next_clear: now + CLEAR,
            without_symbols: 0,
        }
    }

    /// Of those who are wanted, those who are allowed.
    fn permit(&self, wanted: &BTreeSet<String>) -> Pods {
        match self.allowed {
            Allowed::All => Pods::All,
            Allowed::Wanted if !wanted.is_empty() => Pods::These(wanted.clone()),
            Allowed::Wanted | Allowed::Never => Pods::None,
        }
    }

    /// Whether somebody's requests inside TLS are to be counted.
    pub fn is_wanted(&self) -> bool {
        self.pods != Pods::None
    }

    /// From now on the requests of these pods are counted, if that is allowed; true if that is news.
    pub fn want(&mut self, kernel: &mut dyn Kernel, wanted: &BTreeSet<String>) -> bool {
        let pods = self.permit(wanted);
        let refuse = self.allowed == Allowed::Never && !wanted.is_empty();
        if pods == self.pods && refuse == self.refuse {
            return false;
        }
        self.refuse = refuse;
        kernel.count_tls_of_all(pods == Pods::All);
        if let Some(finder) = &self.finder {
            finder.want(pods.clone());
        }
        if pods == Pods::None {
            self.trouble = None;
            self.refused.clear();
        }
        self.looked &= pods != Pods::None;
        self.pods = pods;
        true
    }

    /// The next that was found; never comes where nothing is looked for.
    pub async fn found(&mut self) -> Option<Found> {
        match &mut self.finder {
            Some(finder) => finder.found.recv().await,
            None => std::future::pending().await,
        }
    }

    /// Probes what was found and takes probes off what is gone; true if that, or what stands in the way, is news.
    pub fn take(&mut self, kernel: &mut dyn Kernel, found: Found, now: Instant) -> bool {
        let before = self.troubles();
        let news = !self.looked;
        self.looked = true;
        self.without_symbols += found.without_symbols;
        self.trouble = found.trouble.map(str::to_owned);
        for library in found.gone {
            kernel.spare(library);
            self.refused.retain(|(file, _)| *file != library);
        }
        // What was found for former wishes.
        let new = if self.is_wanted() {
            found.new
        } else {
            Vec::new()
        };
        for library in new {
            self.refused.retain(|(file, _)| *file != library.id);
            match kernel.probe(&library) {
                Ok(()) => tracing::info!(path = library.path, "counting requests inside TLS"),
                Err(reason) => self.refused.push((library.id, reason)),
            }
        }
        let again = !self.refused.is_empty() && now >= self.try_again + TRY_AGAIN;
        if let (true, Some(finder)) = (again, &self.finder) {
            self.try_again = now;
            finder.want(self.pods.clone());
        }
        if now >= self.next_clear {
            self.next_clear = now + CLEAR;
            kernel.clear_tls_sessions();
        }
        news || self.troubles() != before
    }

    /// Whether requests inside TLS of all pods of whom that is wanted are counted.
    pub fn measures(&self) -> bool {
        self.is_wanted() && self.looked && self.troubles().is_empty()
    }

    /// What stands in the way, for people.
    pub fn troubles(&self) -> Vec<String> {
        let refused = self.refused.iter().map(|(_, reason)| reason.clone());
        let not_allowed = self.refuse.then(|| NOT_ALLOWED.to_owned());
        let trouble = self.trouble.iter().cloned();
        not_allowed
            .into_iter()
            .chain(trouble)
            .chain(refused)
            .collect()
    }

    /// Files that are a TLS library by their name, without the functions that are probed; so far.
    pub fn without_symbols(&self) -> u64 {
        self.without_symbols
    }
}
