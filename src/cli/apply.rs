//! `apply`: shows the change in libvirt's definitions, asks, and makes it. It prints as it goes: what is asked for must
//! have been seen.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;

use super::arguments::Apply;
use super::input::{self, gather};
use super::judge::{Judge, Judged};
use super::output::{Failure, Output, for_terminal};
use crate::deliver::apply::{Definition, Libvirt};
use crate::plan::{Mode, Verdict};
use crate::report::Paint;
use crate::rewrite;
use crate::text::printable;

/// A domain to change: how it is, how it shall be.
struct Planned {
    definition: Definition,
    judged: Judged,
    new: Vec<u8>,
}

pub(super) fn apply(arguments: &Apply, paint: Paint) -> Result<Output, Failure> {
    let uri = arguments.judging.connect.clone().unwrap_or_else(|| "qemu:///system".to_owned());
    let libvirt = Libvirt { uri, root: Path::new("/").to_owned() };
    let named =
        if arguments.all { libvirt.persistent().map_err(Failure::new)? } else { arguments.domains.clone() };
    let mut failures = Vec::new();
    let definitions = named.iter().map(|name| libvirt.definition(name).map_err(Failure::new));
    let definitions = usable(arguments, definitions, &mut failures)?;
    if arguments.undo {
        return undo(arguments, &libvirt, definitions, failures);
    }
    let judge = Judge::new(&arguments.judging)?;
    let planned = definitions.into_iter().map(|definition| plan(&judge, definition));
    let planned = usable(arguments, planned, &mut failures)?;
    let mut out = io::stdout().lock();
    let mut show = |bytes: &[u8]| {
        out.write_all(&for_terminal(bytes)).map_err(|e| Failure::new(format!("standard output: {e}")))
    };
    let mut changing = Vec::new();
    for planned in planned {
        let name = &planned.definition.name;
        let answer = &planned.judged.answer;
        if answer.verdict == Verdict::Unknown {
            let why = [answer.assembled.unknown.as_slice(), &planned.judged.notes].concat().join("; ");
            let text = format!("{name}: unknown whether its devices are placed: {why}; nothing is changed");
            show((printable(&text) + "\n").as_bytes())?;
        } else if planned.new == planned.definition.xml {
            show(format!("{name}: nothing to change\n").as_bytes())?;
        } else if planned.judged.answer.settings.mode == Mode::Observe {
            show(format!("{name}: the policy's mode is observe: nothing is changed\n").as_bytes())?;
        } else {
            let draw = if paint.0 { rewrite::diff::coloured } else { rewrite::diff::unified };
            show(&draw(&format!("{name}.xml"), &planned.definition.xml, &planned.new))?;
            changing.push(planned);
        }
    }
    drop(out);
    if changing.is_empty() {
        return finish(std::iter::empty(), "changed", failures);
    }
    if !agreed(arguments.yes, &format!("Make this change in {}?", count(changing.len())))? {
        return declined(failures);
    }
    let each = changing.iter().map(|planned| {
        let Planned { definition, judged, new } = planned;
        libvirt.define(definition, new, &judged.answer.plan.changes).map(|()| definition)
    });
    finish(each, "changed", failures)
}

/// What can be worked on. Of domains that were named, all or none: a name may be mistyped. With `--all` one that
/// cannot be read or judged does not stop the others; it is left as it is, and said at the end.
fn usable<T>(
    arguments: &Apply,
    results: impl Iterator<Item = Result<T, Failure>>,
    failures: &mut Vec<Failure>,
) -> Result<Vec<T>, Failure> {
    if !arguments.all {
        return gather(results);
    }
    Ok(results.filter_map(|result| result.map_err(|failure| failures.push(failure)).ok()).collect())
}

fn plan(judge: &Judge, definition: Definition) -> Result<Planned, Failure> {
    let input = input::Input { label: definition.name.clone(), bytes: definition.xml.clone() };
    let judged = judge.judge(input)?;
    let new = rewrite::rewrite(&definition.xml, &judged.answer.plan.changes)
        .map_err(|error| Failure::new(format!("{}:{error}", definition.name)))?;
    Ok(Planned { definition, judged, new })
}

fn undo(
    arguments: &Apply,
    libvirt: &Libvirt,
    definitions: Vec<Definition>,
    failures: Vec<Failure>,
) -> Result<Output, Failure> {
    // With --all those that were never changed are not meant.
    let meant: Vec<Definition> = definitions
        .into_iter()
        .filter(|definition| !arguments.all || libvirt.has_backup(definition))
        .collect();
    if meant.is_empty() && failures.is_empty() {
        return Ok(Output::text("no domain has a backup: nothing to undo\n"));
    }
    if !meant.is_empty()
        && !agreed(arguments.yes, &format!("Give {} the old definition back?", count(meant.len())))?
    {
        return declined(failures);
    }
    finish(meant.iter().map(|definition| libvirt.undo(definition).map(|()| definition)), "restored", failures)
}

/// Says of each domain what became of it. One that failed does not stop the next; `failures` are those of before.
fn finish<'a>(
    each: impl Iterator<Item = Result<&'a Definition, String>>,
    done: &str,
    mut failures: Vec<Failure>,
) -> Result<Output, Failure> {
    let mut text = String::new();
    for result in each {
        match result {
            Ok(Definition { name, running, .. }) => {
                let when = if *running { "; it runs, and has this from its next start on" } else { "" };
                text += &format!("{name}: {done}{when}\n");
            }
            Err(failure) => failures.push(Failure::new(failure)),
        }
    }
    // What was done is said also where something else failed.
    io::stdout().write_all(text.as_bytes()).map_err(|e| Failure::new(format!("standard output: {e}")))?;
    if failures.is_empty() { Ok(Output::default()) } else { Err(Failure::all(failures)) }
}

/// Nobody wants it. What could not be read or judged is said all the same.
fn declined(mut failures: Vec<Failure>) -> Result<Output, Failure> {
    const NOTHING: &str = "nothing was changed";
    if failures.is_empty() {
        return Ok(Output { notes: vec![NOTHING.to_owned()], no: true, ..Output::default() });
    }
    failures.push(Failure::new(NOTHING));
    Err(Failure::all(failures))
}

/// `--yes`, or a person who says so.
fn agreed(yes: bool, question: &str) -> Result<bool, Failure> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::new("apply: nobody can be asked here, and nothing was changed; give --yes"));
    }
    let mut answer = String::new();
    let asked = write!(io::stderr().lock(), "{question} [y/N] ")
        .and_then(|()| io::stdin().lock().read_line(&mut answer));
    asked.map_err(|error| Failure::new(format!("apply: {error}; nothing was changed")))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn count(domains: usize) -> String {
    if domains == 1 { "this domain".to_owned() } else { format!("these {domains} domains") }
}
