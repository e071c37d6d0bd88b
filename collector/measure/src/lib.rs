//! Pure: cumulative counters in; windows, rates, quantiles and coverage out. Nothing here knows a
//! clock, a socket or Kubernetes: time and facts are arguments.

pub mod answer;
pub mod index;
pub mod metric;
pub mod narrow;
pub mod node;
mod packed;
pub mod protocol;
pub mod quantile;
pub mod query;
pub mod refusal;
pub mod selector;
pub mod series;
pub mod signals;
pub mod state;
mod sum;
pub mod tally;
pub mod time;
pub mod totals;
mod view;

pub use answer::{Answer, AnswerError, PodValue, WindowValue};
pub use metric::{Aggregation, Distribution, Family, Metric, Unit, Window};
pub use protocol::Protocol;
pub use query::{Query, QueryError};
pub use state::State;
pub use time::Time;
