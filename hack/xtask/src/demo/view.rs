//! The live view: redrawn in place on a terminal, plain lines otherwise. It only formats what it is given.

use std::io::{IsTerminal, Write, stdout};

use super::cycle::{Moment, PHASES};

/// Seconds between plain lines.
const PLAIN_INTERVAL: u64 = 3;

/// Where the view goes and how much of it is on the screen.
pub struct View {
    terminal: bool,
    drawn: usize,
    last_change: String,
    last_decision: String,
    next_plain: u64,
}

impl View {
    pub fn new() -> Self {
        Self {
            terminal: stdout().is_terminal(),
            drawn: 0,
            last_change: String::new(),
            last_decision: String::new(),
            next_plain: 0,
        }
    }

    /// Shows a moment.
    pub fn show(&mut self, moment: &Moment) {
        if self.terminal {
            self.redraw(&screen(moment));
            return;
        }
        if moment.change != self.last_change {
            println!("    scaled: {}", moment.change);
            self.last_change.clone_from(&moment.change);
        }
        if moment.decision != self.last_decision {
            println!("    decision: {}", moment.decision);
            self.last_decision.clone_from(&moment.decision);
        }
        if moment.elapsed.as_secs() >= self.next_plain {
            println!("    {}", plain(moment));
            self.next_plain = moment.elapsed.as_secs() + PLAIN_INTERVAL;
        }
    }

    /// Leaves what was shown last in place.
    pub fn end(&mut self) {
        self.drawn = 0;
        println!();
    }

    fn redraw(&mut self, lines: &[String]) {
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A", self.drawn));
        }
        for line in lines {
            // Clear to the end of the line, or a shorter text would leave a rest of the longer one.
            text.push_str(&format!("{line}\x1b[K\n"));
        }
        self.drawn = lines.len();
        let mut out = stdout().lock();
        let _ = out.write_all(text.as_bytes());
        let _ = out.flush();
    }
}

fn screen(moment: &Moment) -> Vec<String> {
    let (_, rate, name) = PHASES[moment.phase];
    let pair =
        |title: &str, left: String, right: String| format!("    {title:<26}{left:>22}{right:>22}");
    let both = |title: &str, text: &dyn Fn(usize) -> String| pair(title, text(0), text(1));
    let number = |value: Option<f64>, unit: &str| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1} {unit}"))
    };
    let mut lines = vec![
        String::new(),
        format!(
            "    \x1b[1m{name}\x1b[0m: {rate} requests/s to each sample      {} of {}",
            clock(moment.elapsed.as_secs()),
            clock(PHASES.iter().map(|(seconds, ..)| seconds).sum()),
        ),
        String::new(),
        pair("", "web (EbpfScaler)".into(), "web-hpa (HPA)".into()),
        both("load generated", &|i| {
            number(moment.load[i].as_ref().map(|load| load.rate), "/s")
        }),
        both("rate measured", &|i| number(moment.rate[i], "/s")),
        both("response p99", &|i| {
            let micros = moment.load[i].as_ref().map(|load| load.p99_us as f64);
            number(micros.map(|micros| micros / 1e3), "ms")
        }),
        both("run-queue p99", &|i| {
            number(
                moment.runqueue_p99_micros[i].map(|micros| micros / 1e3),
                "ms",
            )
        }),
        both("throughput", &|i| {
            number(moment.bytes_per_second[i].map(|bytes| bytes / 1e3), "kB/s")
        }),
        both("replicas (ready)", &|i| {
            format!("{} ({})", moment.replicas[i], moment.ready[i])
        }),
        String::new(),
        format!("    web      {}", bars(&moment.series[0])),
        format!("    web-hpa  {}", bars(&moment.series[1])),
        String::new(),
    ];
    lines.extend(wrapped("    last change:   ", &moment.change, 2));
    lines.extend(wrapped("    last decision: ", &moment.decision, 2));
    lines
}

fn plain(moment: &Moment) -> String {
    let (_, rate, name) = PHASES[moment.phase];
    let number =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
    format!(
        "[{}] {name}: load {rate}/s, measured {}/s and {}/s; replicas web {} ({} ready), web-hpa {} ({} ready); \
         run-queue p99 {} ms; {} kB/s",
        clock(moment.elapsed.as_secs()),
        number(moment.rate[0]),
        number(moment.rate[1]),
        moment.replicas[0],
        moment.ready[0],
        moment.replicas[1],
        moment.ready[1],
        number(moment.runqueue_p99_micros[0].map(|micros| micros / 1e3)),
        number(moment.bytes_per_second[0].map(|bytes| bytes / 1e3)),
    )
}

fn clock(seconds: u64) -> String {
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// Replicas over time, one character for each three seconds.
fn bars(series: &[u32]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    series
        .iter()
        .step_by(3)
        .map(|&replicas| BARS[(replicas as usize).saturating_sub(1).min(BARS.len() - 1)])
        .collect()
}

/// A text in exactly so many lines of a terminal's usual width, so that the view's height does not change.
fn wrapped(title: &str, text: &str, count: usize) -> Vec<String> {
    let mut lines = vec![title.to_owned()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if lines[last].chars().count() + word.chars().count() > 100 {
            lines.push(" ".repeat(title.len()));
        }
        let last = lines.len() - 1;
        lines[last].push_str(word);
        lines[last].push(' ');
    }
    lines.resize(count, String::new());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_view_keeps_its_height() {
        let mut moment = Moment::default();
        let empty = screen(&moment).len();
        moment.decision = "ScaledUp: ".to_owned() + &"many words ".repeat(40);
        moment.series[0] = vec![2, 2, 2, 6, 6, 6, 10, 10, 10];
        assert_eq!(screen(&moment).len(), empty);
        assert!(screen(&moment).iter().any(|line| line.ends_with("▂▆█")));
    }
}
