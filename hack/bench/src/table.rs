//! Tables of results, for a terminal and for docs/benchmarks.md. They hold text: rounding is the caller's.

use std::fmt::Write as _;

/// Rows under headings.
#[derive(Clone, Debug)]
pub struct Table {
    /// What the table shows.
    pub title: String,
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    /// No rows yet.
    pub fn new(title: &str, headings: &[&str]) -> Table {
        Table {
            title: title.to_owned(),
            headings: headings.iter().map(|&heading| heading.to_owned()).collect(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a row, a cell for each heading.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// Adds a line below the table.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let lines = || std::iter::once(&self.headings).chain(&self.rows);
        let width = |column: usize| {
            let cells = lines().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let mut text = format!("\n    {}\n", self.title);
        for line in lines() {
            let mut cells = line.iter().zip(&widths);
            // Names to the left, values to the right.
            if let Some((name, width)) = cells.next() {
                let _ = write!(text, "    {name:<width$}");
            }
            for (cell, width) in cells {
                let _ = write!(text, "  {cell:>width$}");
            }
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "    {note}");
        }
        text
    }

    /// For a document.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("### {}\n\n{}", self.title, line(&self.headings));
        let _ = writeln!(text, "|{}", "---|".repeat(self.headings.len()));
        text.extend(self.rows.iter().map(|row| line(row)));
        text.push('\n');
        for note in &self.notes {
            // Points of a list follow each other.
            let end = if note.starts_with("* ") { "" } else { "\n" };
            let _ = writeln!(text, "{note}{end}");
        }
        text.truncate(text.trim_end().len());
        text + "\n\n"
    }
}

/// Whether a figure keeps its budget, as the tables have it.
pub fn verdict(ok: bool) -> String {
    if ok { "ok" } else { "OVER" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new("What", &["name", "value"]);
        table.row(["a".to_owned(), "1".to_owned()]);
        table.row(["longer".to_owned(), "1234567".to_owned()]);
        table.note("That was it.");
        assert_eq!(
            table.text(),
            "\n    What\n    name      value\n    a             1\n    longer  1234567\n    That was it.\n"
        );
        assert_eq!(
            table.markdown(),
            "### What\n\n| name | value |\n|---|---|\n| a | 1 |\n| longer | 1234567 |\n\nThat was it.\n\n"
        );
    }
}
