//! The table: what was measured, what it must not exceed, and whether it does.

use std::fmt;

/// One line of the table.
pub(crate) struct Row {
    what: String,
    measured: f64,
    unit: &'static str,
    target: Option<Target>,
}

#[derive(Copy, Clone)]
enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Row {
    /// A figure beside the others, with no target of its own.
    pub(crate) fn plain(what: impl Into<String>, measured: f64, unit: &'static str) -> Row {
        Row { what: what.into(), measured, unit, target: None }
    }

    pub(crate) fn at_most(what: impl Into<String>, measured: f64, unit: &'static str, target: f64) -> Row {
        Row { target: Some(Target::AtMost(target)), ..Row::plain(what, measured, unit) }
    }

    pub(crate) fn at_least(what: impl Into<String>, measured: f64, unit: &'static str, target: f64) -> Row {
        Row { target: Some(Target::AtLeast(target)), ..Row::plain(what, measured, unit) }
    }

    /// Whether the target is met; `None` where there is none.
    pub(crate) fn met(&self) -> Option<bool> {
        self.target.map(|target| match target {
            Target::AtMost(most) => self.measured <= most,
            Target::AtLeast(least) => self.measured >= least,
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { what, measured, unit, target } = self;
        let target = match target {
            Some(Target::AtMost(most)) => format!("<= {most} {unit}"),
            Some(Target::AtLeast(least)) => format!(">= {least} {unit}"),
            None => String::new(),
        };
        let met = self.met().map_or("", |met| if met { "ok" } else { "NOT MET" });
        let digits = if *measured < 100.0 { 2 } else { 0 };
        write!(f, "| {what:<66} | {measured:>8.digits$} {unit:<4} | {target:>12} | {met:<7} |")
    }
}

/// Prints a part of the table under its heading.
pub(crate) fn print(heading: &str, rows: &[Row]) {
    println!("| {heading:<66} | {:>13} | {:>12} | {:<7} |", "measured", "target", "");
    println!("|{:-<68}|{:-<15}|{:-<14}|{:-<9}|", "", "", "", "");
    rows.iter().for_each(|row| println!("{row}"));
    println!();
}
