//! The node's cgroups: which tree, which kubepods directory, which pod a directory belongs to, and what
//! comes and goes. Reads the file system and never writes to it.

mod locate;
mod path;
mod throttle;
mod watch;

pub use locate::{Error as LocateError, Kubepods, locate};
pub use path::{PodCgroup, is_kubepods, parse, pod_uid};
pub use throttle::Throttling;
pub use watch::{Change, Misses, Watcher};
