//! Simulates a workload under load and what each decider makes of it: ours, which is exactly the code that
//! the operator runs, the HPA's and Knative's. Never reads a clock or a file, talks to anything, or draws a
//! random number that its seed does not determine.

pub mod compare;
pub mod csv;
mod decider;
pub mod family;
pub mod kpa;
mod measure;
mod outcome;
mod picture;
mod pods;
pub mod random;
mod run;
mod table;
mod trace;

pub use decider::Kind;
pub use outcome::{Change, Outcome, Recovery, Replicas};
pub use picture::picture;
pub use pods::{Handled, PodModel, Pods, Service};
pub use run::{Scenario, run};
pub use table::table;
pub use trace::{Arrivals, FASTEST, LONGEST, Trace};
