//! The machine that a bench ran on, for its output: figures mean nothing without it.

use std::fs;

use serde::Serialize;

/// What figures depend on.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Of the processor.
    pub cpu: String,
    /// CPUs of this machine.
    pub cores: usize,
    /// Main memory.
    pub memory_gib: u64,
    /// Version of the kernel.
    pub kernel: String,
    /// When the bench began (RFC 3339, to the minute).
    pub date: String,
    /// The load of one minute when the bench began: figures of a busy machine are not to be believed.
    pub load: f64,
    /// Whether programs were built with optimisations.
    pub optimised: bool,
}

impl Host {
    /// This machine now; what it does not tell is empty.
    pub fn now() -> Host {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let kib = value(&read("/proc/meminfo"), "MemTotal");
        let kib = kib.trim_end_matches(" kB").parse::<u64>();
        let load = read("/proc/loadavg");
        let load = load.split(' ').next().and_then(|load| load.parse().ok());
        Host {
            cpu: value(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kib.unwrap_or(0).div_ceil(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            date: jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%MZ")
                .to_string(),
            load: load.unwrap_or(0.0),
            optimised: !cfg!(debug_assertions),
        }
    }

    /// One line.
    pub fn line(&self) -> String {
        format!(
            "{}, {} CPUs, {} GiB, Linux {}, {}, load {:.1} at the start{}",
            self.cpu,
            self.cores,
            self.memory_gib,
            self.kernel,
            self.date,
            self.load,
            if self.optimised {
                ""
            } else {
                ", NOT OPTIMISED"
            }
        )
    }
}

/// The value of a `key : value` line.
fn value(text: &str, key: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let value = line.and_then(|line| line.split_once(':'));
    value.map_or(String::new(), |(_, value)| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_key() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n";
        assert_eq!(value(text, "model name"), "A CPU @ 2 GHz");
        assert_eq!(value(text, "cache size"), "");
    }
}
