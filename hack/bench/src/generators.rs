//! The load generators that other people wrote, and how each tells what it has sent. Their own counts are the
//! reference; they are never corrected here.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::process;
use crate::site::Site;

/// What a program may take beyond the time it is asked for.
const GRACE: Duration = Duration::from_secs(60);

/// What a generator has sent, by its own account.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Generated {
    /// Requests (or commands, or transactions) that it says were answered.
    pub requests: u64,
    /// No more than so many others were sent: left unanswered because it ended by time, or of the generator's own affairs.
    pub unfinished: u64,
    /// Answers a second, where the generator tells.
    pub rate: f64,
}

/// A run of wrk.
#[derive(Clone, Copy, Debug)]
pub struct Wrk<'a> {
    /// Connections, over one or two threads.
    pub connections: u64,
    /// How long.
    pub time: Duration,
    /// Additional headers, as `Name: value`.
    pub headers: &'a [String],
    /// A script in Lua, or nothing.
    pub script: &'a str,
    /// Requests that a connection has on their way at most.
    pub pipelined: u64,
}

impl Default for Wrk<'_> {
    fn default() -> Self {
        Wrk {
            connections: 16,
            time: Duration::from_secs(3),
            headers: &[],
            script: "",
            pipelined: 1,
        }
    }
}

impl Wrk<'_> {
    /// Runs it against a URL.
    pub fn run(&self, site: &Site, url: &str) -> anyhow::Result<Generated> {
        let mut command = site.client(&process::find("wrk")?)?;
        let threads = self.connections.min(2);
        command.args([
            format!("-t{threads}"),
            format!("-c{}", self.connections),
            format!("-d{}s", self.time.as_secs().max(1)),
            "--timeout=10s".to_owned(),
        ]);
        for header in self.headers {
            command.args(["-H", header]);
        }
        if !self.script.is_empty() {
            let file = site.directory().join("wrk.lua");
            fs::write(&file, self.script)?;
            command.arg("-s").arg(file);
        }
        let text = process::output(command.arg(url), self.time + GRACE)?;
        let mut generated = wrk(&text).with_context(|| format!("wrk said {text:?}"))?;
        generated.unfinished += self.connections * self.pipelined;
        Ok(generated)
    }
}

fn wrk(text: &str) -> Option<Generated> {
    let mut lines = text.lines().map(str::trim);
    let requests = lines.find_map(|line| line.split_once(" requests in "))?.0;
    let rate = text
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"))?;
    // Of requests that failed it does not say whether they were sent.
    let errors = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Socket errors:"));
    Some(Generated {
        requests: requests.parse().ok()?,
        unfinished: errors.map_or(0, |line| numbers(line).sum()),
        rate: rate.trim().parse().ok()?,
    })
}

/// All numbers in a text.
fn numbers(text: &str) -> impl Iterator<Item = u64> + '_ {
    text.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
}

/// hey: a given number of requests over so many connections.
pub fn hey(site: &Site, url: &str, requests: u64, connections: u64) -> anyhow::Result<Generated> {
    let mut command = site.client(&process::find("hey")?)?;
    let each = requests / connections;
    command.args([
        "-n",
        &(each * connections).to_string(),
        "-c",
        &connections.to_string(),
        url,
    ]);
    let text = process::output(&mut command, GRACE)?;
    exact(hey_answers(&text)).with_context(|| format!("hey said {text:?}"))
}

/// Sums the lines `[status] number responses`.
fn hey_answers(text: &str) -> Option<u64> {
    let lines = text.lines().map(str::trim);
    let answers = lines.filter_map(|line| {
        let (_, rest) = line.strip_prefix('[')?.split_once(']')?;
        rest.trim().strip_suffix(" responses")?.parse::<u64>().ok()
    });
    answers.reduce(|sum, answers| sum + answers)
}

/// h2load: a given number of requests, with so many streams at once on each of the connections.
pub fn h2load(
    site: &Site,
    url: &str,
    requests: u64,
    connections: u64,
    streams: u64,
) -> anyhow::Result<Generated> {
    let mut command = site.client(&process::find("h2load")?)?;
    for (flag, value) in [("-n", requests), ("-c", connections), ("-m", streams)] {
        command.args([flag, &value.to_string()]);
    }
    let text = process::output(command.arg(url), GRACE)?;
    exact(h2load_done(&text)).with_context(|| format!("h2load said {text:?}"))
}

fn h2load_done(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("requests: "))?;
    let done = line
        .split(", ")
        .find_map(|part| part.strip_suffix(" done"))?;
    done.parse().ok()
}

/// redis-benchmark: so many SETs and as many GETs, so many at once on each connection.
pub fn redis(site: &Site, port: u16, requests: u64, pipelined: u64) -> anyhow::Result<Generated> {
    /// It asks for two settings of the server first, which it does not count.
    const SETTINGS: u64 = 2;
    let mut command = site.client(&process::find("redis-benchmark")?)?;
    // It sends whole pipelines, whatever is asked for.
    let each = requests / 2 / pipelined * pipelined;
    command.args(["-h", ebpf_scaler_testbed::SERVER, "-p", &port.to_string()]);
    command.args(["-t", "set,get", "-n", &each.to_string(), "-c", "16", "-q"]);
    command.args(["-P", &pipelined.to_string()]);
    process::output(&mut command, GRACE)?;
    Ok(Generated {
        requests: each * 2,
        unfinished: SETTINGS,
        ..Generated::default()
    })
}

/// The tables that pgbench wants.
pub fn pgbench_tables(site: &Site, port: u16) -> anyhow::Result<()> {
    let mut command = to_postgresql(site, port)?;
    process::output(command.args(["-i", "-q", "postgres"]), GRACE)?;
    Ok(())
}

/// pgbench: select-only transactions for some time, in one of its query modes. Each is one query.
pub fn pgbench(site: &Site, port: u16, time: Duration, mode: &str) -> anyhow::Result<Generated> {
    const CONNECTIONS: u64 = 4;
    let mut command = to_postgresql(site, port)?;
    let (seconds, connections) = (time.as_secs().max(1).to_string(), CONNECTIONS.to_string());
    command.args(["-n", "-S", "-c", &connections, "-T", &seconds]);
    let text = process::output(command.args(["-M", mode, "postgres"]), time + GRACE)?;
    let generated =
        exact(pgbench_processed(&text)).with_context(|| format!("pgbench said {text:?}"))?;
    Ok(Generated {
        // Two queries for the tables' size, and a statement that each connection prepares.
        unfinished: 2 + CONNECTIONS,
        ..generated
    })
}

fn to_postgresql(site: &Site, port: u16) -> anyhow::Result<Command> {
    let mut command = site.client(&process::find("pgbench")?)?;
    command.args(["-h", ebpf_scaler_testbed::SERVER, "-U", "bench", "-p"]);
    command.arg(port.to_string());
    Ok(command)
}

fn pgbench_processed(text: &str) -> Option<u64> {
    let what = "number of transactions actually processed: ";
    let line = text.lines().find_map(|line| line.strip_prefix(what))?;
    numbers(line).next()
}

fn exact(requests: Option<u64>) -> anyhow::Result<Generated> {
    Ok(Generated {
        requests: requests.context("no count in its output")?,
        ..Generated::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_tells_requests_errors_and_rate() {
        let text = "Running 3s test @ http://10.77.0.1:8000/hello
  2 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   222.16us  101.98us   4.05ms   89.87%
  205121 requests in 3.00s, 34.43MB read
  Socket errors: connect 0, read 3, write 0, timeout 2
Requests/sec:  68373.01
Transfer/sec:     11.48MB
";
        let generated = wrk(text).unwrap();
        assert_eq!((generated.requests, generated.unfinished), (205_121, 5));
        assert_eq!(generated.rate, 68_373.01);
        assert_eq!(wrk("unable to connect"), None);
    }

    #[test]
    fn the_others_tell_it_in_their_own_ways() {
        let hey = "Status code distribution:\n  [200]\t990 responses\n  [503]\t10 responses\n";
        assert_eq!(hey_answers(hey), Some(1000));
        assert_eq!(hey_answers("Error distribution:"), None);
        let h2load = "requests: 100 total, 100 started, 99 done, 98 succeeded, 1 failed, 0 errored, 0 timeout\n";
        assert_eq!(h2load_done(h2load), Some(99));
        let pgbench = "number of transactions actually processed: 1234\n";
        assert_eq!(pgbench_processed(pgbench), Some(1234));
    }
}
