//! One table for each dimension: every figure with its ratio to the first row, and below it what
//! each column does as the size grows.

use std::fmt::Write as _;

use perennial_bench::statistics::Summary;

use crate::growth::{Growth, Point, judge};

/// A column of figures.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub title: &'static str,
    pub decimals: usize,
    pub expected: Expected,
}

/// What a column should do.
#[derive(Clone, Copy, Debug)]
pub enum Expected {
    /// Stay, or grow by so much for each: `unit` and `factor` are those of one more.
    FlatOrLinear { unit: &'static str, factor: f64 },
    /// A rate that stays.
    FlatRate,
    /// A rate that grows as the size does: what each does is the same.
    ProportionalRate,
    /// Nothing: it is there to be looked at.
    Anything,
}

/// So many of what grows, round by round.
pub struct Row {
    /// What is measured, where a table has several.
    pub series: &'static str,
    pub size: usize,
    /// For each round the figures in the order of the columns.
    pub rounds: Vec<Vec<f64>>,
    /// Why it is not to be believed.
    pub remarks: String,
    /// Whether its rate is the server's own doing: it had its cores to itself, and was busy.
    pub rate_is_own: bool,
}

impl Row {
    fn summary(&self, column: usize) -> Option<Summary> {
        Summary::of(
            self.rounds
                .iter()
                .filter_map(|round| round.get(column).copied()),
        )
    }

    fn median(&self, column: usize) -> f64 {
        self.summary(column)
            .map_or(f64::NAN, |summary| summary.median)
    }
}

/// The rows of a series follow each other, smallest first.
pub fn table(what: &str, columns: &[Column], rows: &[Row]) -> String {
    let mut text = head(what, columns);
    for series in rows.chunk_by(|one, next| one.series == next.series) {
        for row in series {
            text += &line(columns, row, &series[0]);
        }
    }
    text.push('\n');
    for series in rows.chunk_by(|one, next| one.series == next.series) {
        let _ = writeln!(text, "- {}", verdict(columns, series));
    }
    text
}

fn head(what: &str, columns: &[Column]) -> String {
    let mut text = format!("\n### {what}\n\n| {what} |  |");
    for column in columns {
        let _ = write!(text, " {} | range | of the first |", column.title);
    }
    text += " remarks |\n|---:|---|";
    text += &"---:|---:|---:|".repeat(columns.len());
    text + "---|\n"
}

fn line(columns: &[Column], row: &Row, first: &Row) -> String {
    let mut text = format!("| {} | {} |", row.size, row.series);
    for (index, column) in columns.iter().enumerate() {
        let decimals = column.decimals;
        let Some(summary) = row.summary(index) else {
            text += " - | - | - |";
            continue;
        };
        let _ = write!(
            text,
            " {:.decimals$} | {:.decimals$} to {:.decimals$} | {:.2} |",
            summary.median,
            summary.least,
            summary.most,
            summary.median / first.median(index),
        );
    }
    let _ = writeln!(text, " {} |", row.remarks);
    text
}

/// What each column does over the rows of one series.
fn verdict(columns: &[Column], series: &[Row]) -> String {
    let own = || series.iter().filter(|row| row.rate_is_own);
    let words = |(index, column): (usize, &Column)| {
        let words = match column.expected {
            Expected::Anything => return None,
            Expected::FlatOrLinear { unit, factor } => judge(&points(series.iter(), index))
                .words(|each| format!("{:.3} {unit} for each", factor * each)),
            Expected::FlatRate => {
                judge(&points(own(), index)).words(|each| format!("{each:.3} for each"))
            }
            Expected::ProportionalRate => proportional(&points(own(), index)),
        };
        Some(format!("{} {words}", column.title))
    };
    let mut words: Vec<String> = columns.iter().enumerate().filter_map(words).collect();
    let is_rate = |column: &Column| {
        matches!(
            column.expected,
            Expected::FlatRate | Expected::ProportionalRate
        )
    };
    if columns.iter().any(is_rate) && own().count() < series.len() {
        words.push(format!(
            "{} of {} rates are the server's own",
            own().count(),
            series.len()
        ));
    }
    let name = series[0].series;
    format!("{name}: {}", words.join("; "))
}

fn points<'a>(rows: impl Iterator<Item = &'a Row>, column: usize) -> Vec<Point> {
    let point = |row: &Row| {
        let summary = row.summary(column)?;
        Some(Point {
            size: row.size as f64,
            least: summary.least,
            median: summary.median,
            most: summary.most,
        })
    };
    rows.filter_map(point).collect()
}

/// Of what each does, by size.
fn proportional(points: &[Point]) -> String {
    let each = |point: &Point| Point {
        size: point.size,
        least: point.least / point.size,
        median: point.median / point.size,
        most: point.most / point.size,
    };
    let growth = match points {
        [first, .., last] => format!(
            "{:.2} times for {:.0} times as many",
            last.median / first.median,
            last.size / first.size
        ),
        _ => String::new(),
    };
    match judge(&points.iter().map(each).collect::<Vec<_>>()) {
        Growth::Flat { .. } => format!("linear, {growth}"),
        Growth::Unknown => Growth::Unknown.words(|_| String::new()),
        _ => format!("**not linear**: {growth}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 2] = [
        Column {
            title: "a second",
            decimals: 0,
            expected: Expected::ProportionalRate,
        },
        Column {
            title: "MiB",
            decimals: 1,
            expected: Expected::FlatOrLinear {
                unit: "KiB",
                factor: 1024.0,
            },
        },
    ];

    fn row(series: &'static str, size: usize, rounds: &[[f64; 2]], rate_is_own: bool) -> Row {
        Row {
            series,
            size,
            rounds: rounds.iter().map(|round| round.to_vec()).collect(),
            remarks: String::new(),
            rate_is_own,
        }
    }

    #[test]
    fn each_row_is_beside_the_first_of_its_series() {
        let rows = [
            row("h1", 1, &[[100.0, 10.0], [120.0, 10.0], [90.0, 12.0]], true),
            row("h1", 2, &[[190.0, 11.0]], true),
            row("h2", 1, &[[50.0, 10.0]], true),
            row("h2", 2, &[[60.0, 20.0]], true),
        ];
        let text = table("threads", &COLUMNS, &rows);
        for expected in [
            "| 1 | h1 | 100 | 90 to 120 | 1.00 | 10.0 | 10.0 to 12.0 | 1.00 |",
            "| 2 | h1 | 190 | 190 to 190 | 1.90 | 11.0 | 11.0 to 11.0 | 1.10 |",
            "| 2 | h2 | 60 | 60 to 60 | 1.20 | 20.0 | 20.0 to 20.0 | 2.00 |",
            "- h1: a second linear, 1.90 times for 2 times as many; MiB flat, within 10 %",
            "- h2: a second **not linear**: 1.20 times for 2 times as many; \
             MiB **neither flat nor linear**: 2.00 times for 2 times as many",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    }

    #[test]
    fn a_rate_that_others_had_a_part_in_is_shown_and_not_judged() {
        let rows = [
            row("h1", 1, &[[100.0, 10.0]], true),
            row("h1", 2, &[[100.0, 11.0]], false),
        ];
        let text = table("threads", &COLUMNS, &rows);
        assert!(text.contains("| 2 | h1 | 100 |"), "{text}");
        let expected = "a second not to be judged; MiB flat, within 10 %; 1 of 2 rates are";
        assert!(text.contains(expected), "{text}");
    }
}
