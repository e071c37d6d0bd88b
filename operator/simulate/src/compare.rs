//! Many runs side by side: what each decider came to in each case, and whether ours was no worse than a
//! peer in violations and pod-seconds, and better in one. Never hides a case.

use serde::Serialize;

use crate::{Kind, Outcome, Scenario, Trace, run, table::percent};

/// Differences in pod-seconds below this share are none: another seed gives as much.
const SAME: f64 = 0.02;
/// The same for violations, with an absolute floor: one in ten thousand requests.
const SAME_VIOLATIONS: (f64, f64) = (0.02, 1e-4);

/// A load, or several of one kind.
pub struct Case {
    /// As in the table.
    pub name: String,
    /// Workload, load and seed.
    pub runs: Vec<(Scenario, Trace, u64)>,
}

/// What a decider came to in a case, over all its runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sum {
    /// Who decided.
    pub decider: Kind,
    /// Requests sent.
    pub requests: u64,
    /// Those over the objective or dropped.
    pub bad: u64,
    /// Seconds that pods existed.
    pub pod_seconds: f64,
    /// Changes of replicas.
    pub changes: usize,
    /// Of the recoveries from steps of load, the median in seconds.
    pub recovery: Option<u64>,
}

impl Sum {
    fn of(decider: Kind, outcomes: &[Outcome]) -> Self {
        let mut recoveries: Vec<u64> = outcomes
            .iter()
            .flat_map(|o| &o.recoveries)
            .map(|r| r.seconds.unwrap_or(u64::MAX))
            .collect();
        recoveries.sort_unstable();
        Self {
            decider,
            requests: outcomes.iter().map(|o| o.requests).sum(),
            bad: outcomes.iter().map(|o| o.late + o.dropped).sum(),
            pod_seconds: outcomes.iter().map(|o| o.pod_seconds).sum(),
            changes: outcomes.iter().map(|o| o.changes.len()).sum(),
            recovery: recoveries.get(recoveries.len() / 2).copied(),
        }
    }

    /// Requests over the objective or dropped, as a share of all.
    #[must_use]
    pub fn violations(&self) -> f64 {
        self.bad as f64 / self.requests.max(1) as f64
    }

    /// Whether this is no worse than `peer` in both and better in one; otherwise in what it is worse.
    #[must_use]
    pub fn against(&self, peer: &Self) -> Verdict {
        let (ours, theirs) = (self.violations(), peer.violations());
        let margin = (theirs * SAME_VIOLATIONS.0).max(SAME_VIOLATIONS.1);
        let more = self.pod_seconds / peer.pod_seconds.max(1e-9) - 1.0;
        let worse = (ours > theirs + margin, more > SAME);
        let better = ours < theirs - margin || more < -SAME;
        match worse {
            (true, true) => Verdict::Worse,
            (true, false) => Verdict::MoreViolations,
            (false, true) => Verdict::MorePods(more),
            (false, false) if better => Verdict::Reached,
            (false, false) => Verdict::Equal,
        }
    }
}

/// How ours compares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// No worse in both, and better in one.
    Reached,
    /// No worse and no better.
    Equal,
    /// No more violations, but so many more pod-seconds, as a share.
    MorePods(f64),
    /// No more pod-seconds, but more violations.
    MoreViolations,
    /// Worse in both.
    Worse,
}

impl Verdict {
    fn text(self) -> String {
        match self {
            Self::Reached => "**reached**".into(),
            Self::Equal => "equal".into(),
            Self::MorePods(share) => format!("pods +{:.0} %", share * 100.0),
            Self::MoreViolations => "violations".into(),
            Self::Worse => "worse".into(),
        }
    }
}

/// A case with everybody's sums; ours is the first.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Of the case.
    pub case: String,
    /// Of each decider.
    pub sums: Vec<Sum>,
}

impl Row {
    /// Runs a case under each decider.
    #[must_use]
    pub fn run(case: &Case, kinds: &[Kind]) -> Self {
        let sum = |kind: &Kind| {
            let outcomes: Vec<Outcome> = case
                .runs
                .iter()
                .filter_map(|(scenario, trace, seed)| run(scenario, trace, *kind, *seed))
                .collect();
            Sum::of(*kind, &outcomes)
        };
        Self {
            case: case.name.clone(),
            sums: kinds.iter().map(sum).collect(),
        }
    }

    /// Ours against each peer.
    pub fn verdicts(&self) -> impl Iterator<Item = (Kind, Verdict)> + '_ {
        let ours = self.sums.first();
        let peers = self.sums.iter().skip(1);
        peers.filter_map(move |peer| Some((peer.decider, ours?.against(peer))))
    }
}

/// The rows as Markdown, and below them in how many cases the goal is reached.
#[must_use]
pub fn markdown(rows: &[Row]) -> String {
    let Some(first) = rows.first() else {
        return String::new();
    };
    let names: Vec<&str> = first.sums.iter().map(|s| s.decider.as_str()).collect();
    let peers = names.get(1..).unwrap_or(&[]);
    let all = names.join(" / ");
    let mut text = format!("| case | violations %: {all} | pod-hours | changes | recovery s |");
    for peer in peers {
        text.push_str(&format!(" against {peer} |"));
    }
    text.push_str(&format!("\n|{}\n", "---|".repeat(5 + peers.len())));
    for row in rows {
        let each = |cell: fn(&Sum) -> String| {
            let cells: Vec<String> = row.sums.iter().map(cell).collect();
            cells.join(" / ")
        };
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} |",
            row.case,
            each(|s| percent(s.violations())),
            each(|s| format!("{:.1}", s.pod_seconds / 3600.0)),
            each(|s| s.changes.to_string()),
            each(|s| match s.recovery {
                None => "-".into(),
                Some(u64::MAX) => "never".into(),
                Some(seconds) => seconds.to_string(),
            }),
        ));
        for (_, verdict) in row.verdicts() {
            text.push_str(&format!(" {} |", verdict.text()));
        }
        text.push('\n');
    }
    text.push('\n');
    for peer in first.sums.iter().skip(1).map(|s| s.decider) {
        let count = |wanted: fn(&Verdict) -> bool| {
            let verdicts = rows.iter().flat_map(Row::verdicts);
            verdicts.filter(|(k, v)| *k == peer && wanted(v)).count()
        };
        text.push_str(&format!(
            "Against {}: reached in {} of {} cases, equal in {}; more pods for no more violations in {}, more \
             violations for no more pods in {}, worse in both in {}.\n",
            peer.as_str(),
            count(|v| *v == Verdict::Reached),
            rows.len(),
            count(|v| *v == Verdict::Equal),
            count(|v| matches!(v, Verdict::MorePods(_))),
            count(|v| *v == Verdict::MoreViolations),
            count(|v| *v == Verdict::Worse),
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bad: u64, pod_seconds: f64) -> Sum {
        Sum {
            decider: Kind::EbpfScaler,
            requests: 100_000,
            bad,
            pod_seconds,
            changes: 0,
            recovery: None,
        }
    }

    #[test]
    fn no_worse_in_both_and_better_in_one() {
        let peer = sum(1000, 100.0);
        for (ours, wanted) in [
            (sum(900, 100.0), Verdict::Reached),
            (sum(1010, 90.0), Verdict::Reached),
            (sum(1010, 101.0), Verdict::Equal),
            (sum(1100, 90.0), Verdict::MoreViolations),
            (sum(1100, 110.0), Verdict::Worse),
        ] {
            assert_eq!(ours.against(&peer), wanted);
        }
        let Verdict::MorePods(more) = sum(0, 110.0).against(&peer) else {
            panic!("10 % more pods");
        };
        assert!((more - 0.1).abs() < 1e-9);
    }

    #[test]
    fn the_table_counts_what_it_shows() {
        let hpa = |bad, pods| Sum {
            decider: Kind::Hpa,
            ..sum(bad, pods)
        };
        let row = |ours, peer| Row {
            case: "case".into(),
            sums: vec![ours, peer],
        };
        let rows = [
            row(sum(10, 3600.0), hpa(100, 3600.0)),
            row(sum(10, 3960.0), hpa(100, 3600.0)),
        ];
        let text = markdown(&rows);
        assert!(
            text.contains("| case | 0.010 / 0.10 | 1.0 / 1.0 | 0 / 0 | - / - | **reached** |"),
            "{text}"
        );
        assert!(text.contains("| pods +10 % |"));
        assert!(text.contains("Against hpa: reached in 1 of 2 cases, equal in 0; more pods for no more violations in 1,"));
        assert_eq!(markdown(&[]), "");
    }
}
