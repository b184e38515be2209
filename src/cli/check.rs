//! `check`.

use std::ffi::OsString;

use super::arguments::{Check, Format};
use super::input;
use super::judge::{Judge, Judged};
use super::many::in_order;
use super::output::{Failure, Long, Output};
use crate::plan::Verdict;
use crate::report::{self, Detail, Paint, SummaryRow, check_text, summary_text};

pub(super) fn check(arguments: &Check, paint: Paint) -> Result<Output, Failure> {
    let connect = arguments.judging.connect.as_deref();
    input::one_standard_input(&arguments.domains)?;
    let judge = Judge::new(&arguments.judging)?;
    let how = How::new(arguments, paint);
    let work = |argument: &OsString| {
        let judged = judge.judge(input::domain(argument, connect)?)?;
        let fine = matches!(judged.answer.verdict, Verdict::Fits | Verdict::NoPassthrough);
        Ok((fine, how.show(&judged)?))
    };
    let between = if matches!(how, How::Whole { .. }) { "\n\n" } else { "" };
    let (mut long, mut rows, mut failures, mut no) = (Long::default(), Vec::new(), Vec::new(), false);
    in_order(&arguments.domains, work, |result| {
        let kept = result.and_then(|(fine, shown)| {
            no |= !fine;
            match shown {
                Shown::Row(row) => rows.push(row),
                // Nothing is printed once something has failed.
                Shown::Text(text) if failures.is_empty() => long.push(between, &text)?,
                Shown::Text(_) => {}
            }
            Ok(())
        });
        failures.extend(kept.err());
    });
    if !failures.is_empty() {
        return Err(Failure::all(failures));
    }
    let output = match how {
        How::Row => Output::text(summary_text(rows, paint)),
        _ => Output { long: Some(long), ..Output::default() },
    };
    Ok(Output { no, ..output })
}

/// How each domain is shown.
#[derive(Copy, Clone)]
enum How {
    /// An object over several lines.
    Object,
    /// An object in a line.
    Line,
    /// In sentences and tables.
    Whole { detail: Detail, paint: Paint },
    /// A row of a table.
    Row,
}

enum Shown {
    Text(String),
    Row(SummaryRow),
}

impl How {
    fn new(arguments: &Check, paint: Paint) -> How {
        let several = arguments.domains.len() > 1;
        match (arguments.format, arguments.verbose) {
            (Format::Json, _) if several => How::Line,
            (Format::Json, _) => How::Object,
            (Format::Human, true) => How::Whole { detail: Detail::Full, paint },
            (Format::Human, false) if several => How::Row,
            (Format::Human, false) => How::Whole { detail: Detail::Usual, paint },
        }
    }

    fn show(self, judged: &Judged) -> Result<Shown, Failure> {
        let Judged { input, domain, answer, .. } = judged;
        Ok(match self {
            How::Object => Shown::Text(report::Check::new(domain, answer).to_text()?),
            How::Line => Shown::Text(report::Check::new(domain, answer).to_line()?),
            How::Whole { detail, paint } => Shown::Text(check_text(domain, answer, detail, paint)),
            How::Row => Shown::Row(SummaryRow::new(&input.label, domain, answer)),
        })
    }
}
