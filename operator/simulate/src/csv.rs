//! Reads a trace from CSV: a header, then `seconds,rate`. Never opens a file.

use crate::trace::{Arrivals, FASTEST, LONGEST, Trace, millis};

/// What is wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A cell.
    #[error("line {line}, column {column} ({name}): {what}")]
    Cell {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// As in the header.
        name: &'static str,
        /// What was expected and what was found.
        what: String,
    },
    /// The first line that is no comment.
    #[error("line {line}: expected the header \"seconds,rate\", found {found:?}")]
    Header {
        /// From 1.
        line: usize,
        /// The line.
        found: String,
    },
    /// A file without rates.
    #[error("no rates: expected the header \"seconds,rate\" and at least one line after it")]
    Empty,
}

/// The trace in `text`. The last rate holds as long as the one before it, a lone one for a second.
/// A file whose header calls its rates `count` has counted them: see [`Arrivals::Counted`].
///
/// # Errors
/// When a line is not two numbers, times do not rise, or a rate cannot be simulated.
pub fn parse(name: &str, text: &str) -> Result<Trace, Error> {
    let mut arrivals = None;
    let mut rates: Vec<(u64, f64)> = Vec::new();
    for (i, row) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let (line, row) = (i + 1, row.trim());
        if row.is_empty() || row.starts_with('#') {
            continue;
        }
        if arrivals.is_none() {
            arrivals = Some(header(line, row)?);
            continue;
        }
        rates.push(cells(line, row, rates.last().map(|(t, _)| *t))?);
    }
    let (Some(arrivals), Some((last, _))) = (arrivals, rates.last()) else {
        return Err(Error::Empty);
    };
    let before = rates.len().checked_sub(2).and_then(|i| rates.get(i));
    let end = last + before.map_or(1000, |(t, _)| last - t);
    Ok(Trace {
        name: name.to_owned(),
        rates,
        end,
        arrivals,
        rollouts: Vec::new(),
    })
}

fn header(line: usize, row: &str) -> Result<Arrivals, Error> {
    let mut names = row.split(',').map(str::trim);
    match (names.next(), names.next(), names.next()) {
        (Some("seconds"), Some("rate"), None) => Ok(Arrivals::Poisson),
        (Some("seconds"), Some("count"), None) => Ok(Arrivals::Counted),
        _ => Err(Error::Header {
            line,
            found: row.chars().take(60).collect(),
        }),
    }
}

fn cells(line: usize, row: &str, last: Option<u64>) -> Result<(u64, f64), Error> {
    let mut cells = row.split(',');
    let mut number = |column, name| {
        let wrong = |what: String| Error::Cell {
            line,
            column,
            name,
            what,
        };
        let cell = cells.next().ok_or_else(|| wrong("missing".into()))?.trim();
        let number: f64 = cell
            .parse()
            .map_err(|_| wrong(format!("expected a number, found {cell:?}")))?;
        if number.is_finite() && number >= 0.0 {
            Ok(number)
        } else {
            Err(wrong(format!("must be finite and not below 0, not {cell}")))
        }
    };
    let seconds = number(1, "seconds")?;
    let rate = number(2, "rate")?;
    let wrong = |column, name, what: String| Error::Cell {
        line,
        column,
        name,
        what,
    };
    if let Some(more) = cells.next() {
        let what = format!("one more than the header names: {more:?}");
        return Err(wrong(3, "?", what));
    }
    if rate > FASTEST {
        let what = format!("at most {FASTEST} requests per second can be simulated, not {rate}");
        return Err(wrong(2, "rate", what));
    }
    let at = (seconds * 1000.0).round() as u64;
    if at >= millis(LONGEST) {
        let what = format!("at most {} s can be simulated", LONGEST.as_secs());
        return Err(wrong(1, "seconds", what));
    }
    match last {
        None if at != 0 => Err(wrong(1, "seconds", "a trace begins at 0".into())),
        Some(last) if at <= last => {
            let what = format!("{seconds} is not after the line before");
            Err(wrong(1, "seconds", what))
        }
        _ => Ok((at, rate)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_uneven_steps_are_read() {
        let trace = parse(
            "x",
            "# from somewhere\nseconds,rate\n0,1.5\n60, 2\n\n90,3\n",
        )
        .unwrap();
        assert_eq!(trace.rates, [(0, 1.5), (60_000, 2.0), (90_000, 3.0)]);
        assert_eq!(trace.end, 120_000);
        assert_eq!(trace.arrivals, Arrivals::Poisson);
        let counted = parse("x", "seconds,count\n0,4\n").unwrap();
        assert_eq!((counted.end, counted.arrivals), (1000, Arrivals::Counted));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, wanted) in [
            ("", "no rates: expected the header"),
            ("seconds,rate\n", "no rates"),
            (
                "0,1\n",
                "line 1: expected the header \"seconds,rate\", found \"0,1\"",
            ),
            (
                "seconds,rate\n0,1\n1,fast\n",
                "line 3, column 2 (rate): expected a number, found \"fast\"",
            ),
            ("seconds,rate\n0,1\n1\n", "line 3, column 2 (rate): missing"),
            (
                "seconds,rate\n0,1,2\n",
                "line 2, column 3 (?): one more than the header names",
            ),
            (
                "#\nseconds,rate\n0,-1\n",
                "line 3, column 2 (rate): must be finite and not below 0, not -1",
            ),
            (
                "seconds,rate\n0,NaN\n",
                "line 2, column 2 (rate): must be finite",
            ),
            (
                "seconds,rate\n0,1e9\n",
                "line 2, column 2 (rate): at most 100000 requests",
            ),
            (
                "seconds,rate\n1,1\n",
                "line 2, column 1 (seconds): a trace begins at 0",
            ),
            (
                "seconds,rate\n0,1\n0,1\n",
                "line 3, column 1 (seconds): 0 is not after the line before",
            ),
            (
                "seconds,rate\n0,1\n1e12,1\n",
                "line 3, column 1 (seconds): at most 2678400 s",
            ),
        ] {
            let error = parse("x", text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{error}");
        }
    }
}
