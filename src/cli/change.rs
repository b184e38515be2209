//! `diff` and `rewrite`: the planned change, seen and made.

use super::arguments::{Diff, Rewrite};
use super::input::{self, gather};
use super::judge::{Judge, Judged};
use super::output::{Failure, Output};
use crate::plan::{Mode, Verdict};
use crate::report::{Paint, headline};
use crate::rewrite;

pub(super) fn diff(arguments: &Diff, paint: Paint) -> Result<Output, Failure> {
    let connect = arguments.judging.connect.as_deref();
    let inputs = input::domains(&arguments.domains, connect)?;
    let judge = Judge::new(&arguments.judging)?;
    let mut output = Output::default();
    for (judged, new) in gather(inputs.into_iter().map(|input| changed(&judge, input)))? {
        let name = match judged.input.label.as_str() {
            // What is not a file gets the name that one would give it.
            "<stdin>" if !judged.domain.name.is_empty() => format!("{}.xml", judged.domain.name),
            "<stdin>" => "domain.xml".to_owned(),
            label if connect.is_some() => format!("{label}.xml"),
            label => label.to_owned(),
        };
        let draw = if paint.0 { rewrite::diff::coloured } else { rewrite::diff::unified };
        output.stdout.extend(draw(&name, &judged.input.bytes, &new));
        output.notes.extend(worry(&judged));
    }
    output.no = !output.stdout.is_empty();
    Ok(output)
}

pub(super) fn rewrite(arguments: &Rewrite) -> Result<Output, Failure> {
    let inputs =
        input::domains(std::slice::from_ref(&arguments.domain), arguments.judging.connect.as_deref())?;
    let judge = Judge::new(&arguments.judging)?;
    let mut output = Output::default();
    for (judged, new) in gather(inputs.into_iter().map(|input| changed(&judge, input)))? {
        let answer = &judged.answer;
        let lost = !matches!(answer.plan.verdict, Verdict::Fits | Verdict::NoPassthrough | Verdict::Unknown);
        output.stdout = match answer.settings.mode {
            Mode::Strict if lost => {
                let text = headline(&judged.domain, answer);
                return Err(Failure::refusal(format!("{text} The policy's mode is strict: refused")));
            }
            Mode::Observe => {
                if !answer.plan.changes.is_empty() {
                    output.notes.push("the policy's mode is observe: nothing is changed".to_owned());
                }
                judged.input.bytes.clone()
            }
            Mode::Strict | Mode::Enforce => new,
        };
        output.notes.extend(worry(&judged));
    }
    Ok(output)
}

/// A domain, the answer for it, and its text with the planned changes made.
fn changed(judge: &Judge, input: input::Input) -> Result<(Judged, Vec<u8>), Failure> {
    let judged = judge.judge(input)?;
    let new = rewrite::rewrite(&judged.input.bytes, &judged.answer.plan.changes)
        .map_err(|error| Failure::new(format!("{}:{error}", judged.input.label)))?;
    Ok((judged, new))
}

/// What must not be overlooked although the output looks well: the change does not make everything fit.
fn worry(judged: &Judged) -> Option<String> {
    let well = matches!(judged.answer.plan.verdict, Verdict::Fits | Verdict::NoPassthrough);
    (!well).then(|| headline(&judged.domain, &judged.answer))
}
