//! Outcomes as a picture: load, replicas and violations on one time axis, as SVG. Never judges them.

use std::fmt::Write;

use crate::{Kind, Outcome, Trace};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const HEAD: f64 = 62.0;
const PANEL: f64 = 150.0;
const GAP: f64 = 38.0;
const FOOT: f64 = 44.0;
/// More columns than this nobody can tell apart.
const COLUMNS: usize = 640;
const INK: &str = "#334155";
const FAINT: &str = "#e2e8f0";
const LOAD: &str = "#94a3b8";

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::EbpfScaler => "#0b62c4",
        Kind::RequestRate => "#0f766e",
        Kind::BoundedSteps => "#b45309",
        Kind::Hpa => "#d9731a",
        Kind::HpaCpu => "#8e4ea8",
        Kind::Kpa => "#2b8a3e",
    }
}

/// A panel: where it is, and what its axis ends at.
struct Panel {
    top: f64,
    highest: f64,
    seconds: f64,
}

impl Panel {
    fn x(&self, second: f64) -> f64 {
        LEFT + second / self.seconds.max(1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        self.top + PANEL * (1.0 - (value / self.highest).clamp(0.0, 1.0))
    }

    /// Title, lines at round values, and their labels.
    fn frame(&self, svg: &mut String, title: &str) {
        let (right, title_y) = (WIDTH - RIGHT, self.top - 9.0);
        let _ = writeln!(
            svg,
            r#"<text x="{LEFT}" y="{title_y:.1}" font-weight="600">{title}</text>"#
        );
        let step = round(self.highest / 4.0);
        let mut value = 0.0;
        while value <= self.highest * 1.0001 {
            let y = self.y(value);
            let _ = writeln!(
                svg,
                r#"<line x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}" stroke="{FAINT}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{value}</text>"#,
                LEFT - 8.0,
                y + 4.0,
                value = short(value),
            );
            value += step;
        }
    }

    /// A line that holds each value until the next.
    fn stairs(&self, points: impl Iterator<Item = (f64, f64)>) -> String {
        let (mut path, mut last) = (String::new(), None);
        for (second, value) in points {
            let (x, y) = (self.x(second), self.y(value));
            let _ = match last {
                None => write!(path, "M{x:.1} {y:.1}"),
                Some(before) if before == y => continue,
                Some(_) => write!(path, "H{x:.1}V{y:.1}"),
            };
            last = Some(y);
        }
        let _ = write!(path, "H{:.1}", WIDTH - RIGHT);
        path
    }
}

/// The next larger of 1, 2 and 5 times a power of ten.
fn round(value: f64) -> f64 {
    if !(value.is_finite() && value > 0.0) {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|s| s * power);
    steps
        .into_iter()
        .find(|s| *s >= value * 0.999)
        .unwrap_or(value)
}

fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The picture. `target` is what a pod should have of the load, if that is requests per second.
#[must_use]
pub fn picture(trace: &Trace, outcomes: &[Outcome], target: Option<f64>) -> String {
    let seconds = outcomes.first().map_or(0, |o| o.seconds.len());
    let height = HEAD + 3.0 * PANEL + 2.0 * GAP + FOOT;
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12" fill="{INK}">
<rect width="100%" height="100%" fill="white"/>
<text x="{LEFT}" y="22" font-size="15" font-weight="600">{}</text>
"#,
        escape(&trace.name)
    );
    let bin = seconds.div_ceil(COLUMNS).max(1);
    let load = binned(outcomes.first(), bin, |sent, _, long| {
        f64::from(sent) / long
    });
    let panel = |i: f64, values: &mut dyn Iterator<Item = f64>| {
        let top = values.fold(0.0, f64::max);
        Panel {
            top: HEAD + i * (PANEL + GAP),
            highest: round(top / 4.0) * (top / round(top / 4.0)).ceil().max(1.0),
            seconds: seconds as f64,
        }
    };
    let at = |i: usize| (i * bin) as f64;

    axis(&mut svg, seconds as f64);
    let first = panel(0.0, &mut load.iter().copied());
    first.frame(&mut svg, "load, requests per second");
    let path = first.stairs(load.iter().enumerate().map(|(i, v)| (at(i), *v)));
    let base = first.y(0.0);
    let _ = writeln!(
        svg,
        r#"<path d="{path}V{base:.1}H{LEFT}Z" fill="{LOAD}" fill-opacity="0.35" stroke="{LOAD}"/>"#
    );

    let most = outcomes.iter().map(|o| f64::from(o.most));
    let second = panel(1.0, &mut most.into_iter());
    second.frame(&mut svg, "replicas asked for, pods");
    if let Some(target) = target.filter(|t| *t > 0.0) {
        let needed = load.iter().enumerate().map(|(i, v)| (at(i), v / target));
        let _ = writeln!(
            svg,
            r#"<path d="{}" fill="none" stroke="{LOAD}" stroke-width="1"/>"#,
            second.stairs(needed)
        );
    }
    for o in outcomes.iter().rev() {
        let points = o.replicas.iter();
        let points = points.map(|r| (r.millis as f64 / 1000.0, f64::from(r.spec)));
        line(&mut svg, &second.stairs(points), o.decider);
    }

    let violations: Vec<Vec<f64>> = outcomes
        .iter()
        .map(|o| {
            binned(Some(o), bin, |sent, bad, _| {
                100.0 * f64::from(bad) / f64::from(sent.max(1))
            })
        })
        .collect();
    let third = panel(2.0, &mut violations.iter().flatten().copied());
    third.frame(&mut svg, "requests over the objective or dropped, %");
    for (o, values) in outcomes.iter().zip(&violations).rev() {
        let points = values.iter().enumerate().map(|(i, v)| (at(i), *v));
        line(&mut svg, &third.stairs(points), o.decider);
    }
    legend(&mut svg, outcomes, target.is_some());
    svg.push_str("</svg>\n");
    svg
}

fn line(svg: &mut String, path: &str, kind: Kind) {
    let colour = colour(kind);
    let _ = writeln!(
        svg,
        r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>"#
    );
}

/// `value` of what was sent and what was bad in each bin, and of its seconds.
fn binned(outcome: Option<&Outcome>, bin: usize, value: impl Fn(u32, u32, f64) -> f64) -> Vec<f64> {
    let seconds = outcome.map_or(&[][..], |o| o.seconds.as_slice());
    let bins = seconds.chunks(bin).map(|chunk| {
        let sent = chunk.iter().fold(0u32, |a, (s, _)| a.saturating_add(*s));
        let bad = chunk.iter().fold(0u32, |a, (_, b)| a.saturating_add(*b));
        value(sent, bad, chunk.len() as f64)
    });
    bins.collect()
}

/// The time axis, under everything else.
fn axis(svg: &mut String, seconds: f64) {
    let panel = Panel {
        top: HEAD + 2.0 * (PANEL + GAP),
        highest: 1.0,
        seconds,
    };
    let (unit, name) = match panel.seconds {
        s if s <= 300.0 => (1.0, "seconds"),
        s if s <= 3.0 * 3600.0 => (60.0, "minutes"),
        _ => (3600.0, "hours"),
    };
    let step = round(panel.seconds / unit / 10.0);
    let bottom = panel.top + PANEL;
    let mut value = 0.0;
    while value * unit <= panel.seconds {
        let x = panel.x(value * unit);
        let _ = writeln!(
            svg,
            r#"<line x1="{x:.1}" y1="{HEAD}" x2="{x:.1}" y2="{bottom:.1}" stroke="{FAINT}" stroke-dasharray="2 4"/><text x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            bottom + 17.0,
            short(value),
        );
        value += step;
    }
    let _ = writeln!(
        svg,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{name}</text>"#,
        WIDTH - RIGHT,
        bottom + 34.0
    );
}

fn legend(svg: &mut String, outcomes: &[Outcome], needed: bool) {
    let kinds = outcomes
        .iter()
        .map(|o| (colour(o.decider), o.decider.as_str()));
    let load = needed.then_some((LOAD, "load / target"));
    let mut x = WIDTH - RIGHT;
    let entries: Vec<_> = kinds.chain(load).collect();
    for (colour, name) in entries.into_iter().rev() {
        x -= 40.0 + 7.0 * name.len() as f64;
        let _ = writeln!(
            svg,
            r#"<line x1="{x:.1}" y1="18" x2="{:.1}" y2="18" stroke="{colour}" stroke-width="3"/><text x="{:.1}" y="22">{name}</text>"#,
            x + 18.0,
            x + 24.0
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_values() {
        assert_eq!(
            [0.3, 1.0, 7.0, 25.0, 3000.0].map(round),
            [0.5, 1.0, 10.0, 50.0, 5000.0]
        );
        assert_eq!([0.0, f64::NAN, -1.0].map(round), [1.0; 3]);
        assert_eq!([short(0.5), short(20.0), short(0.0)], ["0.5", "20", "0"]);
    }

    #[test]
    fn nothing_at_all_is_a_picture_too() {
        let svg = picture(&Trace::each_second("a < b & c", []), &[], None);
        assert!(svg.contains("a &lt; b &amp; c") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
