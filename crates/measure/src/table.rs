//! Figures as people read them: tables, and targets beside what was measured.

use serde::Serialize;

/// One figure of a run beside what it should be.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    name: String,
    value: f64,
    target: f64,
    /// Which way is better: `<=` or `>=`.
    bound: &'static str,
    met: bool,
}

impl Target {
    /// A figure that should not be above the target.
    pub fn at_most(name: impl Into<String>, value: f64, target: f64) -> Self {
        Target {
            name: name.into(),
            value: rounded(value),
            target,
            bound: "<=",
            met: value <= target,
        }
    }

    /// A figure that should not be below the target.
    pub fn at_least(name: impl Into<String>, value: f64, target: f64) -> Self {
        Target {
            name: name.into(),
            value: rounded(value),
            target,
            bound: ">=",
            met: value >= target,
        }
    }

    /// Whether the figure is what it should be.
    pub fn is_met(&self) -> bool {
        self.met
    }
}

/// Prints tables as they are measured; with `--json`, one object last.
#[derive(Clone, Copy)]
pub struct Output {
    /// Where lines go.
    pub say: fn(&str),
    /// Whether an object is wanted.
    pub json: bool,
}

impl Output {
    /// A line, or several.
    pub fn line(&self, line: impl AsRef<str>) {
        (self.say)(line.as_ref());
    }

    /// A title and rows, the first of them the heads of the columns; all but the first column stand right.
    pub fn table(&self, title: &str, rows: &[Vec<String>]) {
        self.line(format!("\n{title}\n"));
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|at| {
                let cells = rows.iter().filter_map(|row| row.get(at));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for (number, row) in rows.iter().enumerate() {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(at, (cell, &width))| match at {
                    0 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                })
                .collect();
            self.line(format!("| {} |", cells.join(" | ")));
            if number == 0 {
                let dashes: Vec<String> = widths
                    .iter()
                    .enumerate()
                    .map(|(at, &width)| match at {
                        0 => "-".repeat(width),
                        _ => format!("{}:", "-".repeat(width.saturating_sub(1))),
                    })
                    .collect();
                self.line(format!("| {} |", dashes.join(" | ")));
            }
        }
    }

    /// The targets as a table, and the object.
    pub fn finish(
        &self,
        command: &str,
        mut figures: serde_json::Map<String, serde_json::Value>,
        targets: &[Target],
    ) -> Result<(), serde_json::Error> {
        let mut rows = vec![cells(["target", "value", "bound", "met"])];
        for target in targets {
            rows.push(vec![
                target.name.clone(),
                figure(target.value),
                format!("{} {}", target.bound, figure(target.target)),
                if target.met { "yes" } else { "NO" }.to_owned(),
            ]);
        }
        self.table("Targets", &rows);
        if self.json {
            figures.insert("command".to_owned(), command.into());
            figures.insert("targets".to_owned(), serde_json::to_value(targets)?);
            self.line(serde_json::to_string(&figures)?);
        }
        Ok(())
    }
}

/// A row of a table.
pub fn cells<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// A number with as many digits as say something.
pub fn figure(value: f64) -> String {
    match value.abs() {
        large if large >= 10_000.0 => {
            let digits = format!("{value:.0}");
            let mut grouped = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && digit != '-' && (digits.len() - at).is_multiple_of(3) {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            grouped
        }
        large if large >= 100.0 => format!("{value:.0}"),
        middling if middling >= 10.0 => format!("{value:.1}"),
        small if small >= 0.1 || small == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn rounded(value: f64) -> f64 {
    if value.is_finite() {
        (value * 1e4).round() / 1e4
    } else {
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_grouped() {
        assert_eq!(figure(1_234_567.0), "1,234,567");
    }
}
