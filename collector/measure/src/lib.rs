//! Pure: cumulative counters in; windows, rates, quantiles and coverage out. Nothing here knows a
//! clock, a socket or Kubernetes: time and facts are arguments.

pub mod metric;
pub mod quantile;
pub mod query;
pub mod selector;
pub mod series;
pub mod totals;

pub use metric::{Aggregation, Distribution, Family, Metric, Unit, Window};
