//! `check`.

use super::arguments::{Check, Format};
use super::input::{self, gather};
use super::judge::{Judge, Judged};
use super::output::{Failure, Output};
use crate::plan::Verdict;
use crate::report::{self, Detail, Paint, check_text, summary_text};

pub(super) fn check(arguments: &Check, paint: Paint) -> Result<Output, Failure> {
    let inputs = input::domains(&arguments.domains, arguments.judging.connect.as_deref())?;
    let judge = Judge::new(&arguments.judging)?;
    let judged = gather(inputs.into_iter().map(|input| judge.judge(input)))?;
    let fine = |judged: &Judged| matches!(judged.answer.verdict, Verdict::Fits | Verdict::NoPassthrough);
    let no = !judged.iter().all(fine);
    let stdout = match arguments.format {
        Format::Json => json(&judged)?,
        Format::Human => human(&judged, arguments.verbose, paint),
    };
    Ok(Output { no, ..Output::text(stdout) })
}

fn json(judged: &[Judged]) -> Result<String, Failure> {
    let object = |one: &Judged| {
        let check = report::Check::new(&one.domain, &one.answer);
        if judged.len() == 1 { check.to_text() } else { check.to_line() }
    };
    let objects: Result<String, _> = judged.iter().map(object).collect();
    Ok(objects?)
}

fn human(judged: &[Judged], verbose: bool, paint: Paint) -> String {
    let detail = if verbose { Detail::Full } else { Detail::Usual };
    let whole = |one: &Judged| check_text(&one.domain, &one.answer, detail, paint);
    if verbose || judged.len() == 1 {
        return judged.iter().map(whole).collect::<Vec<_>>().join("\n\n");
    }
    let rows: Vec<_> = judged.iter().map(|one| (one.input.label.clone(), &one.domain, &one.answer)).collect();
    summary_text(&rows, paint)
}
