//! The command line: what was typed, what it means, and what is printed.
//!
//! Everything that touches the world is here: files, standard input, `virsh`, the terminal. A verb builds its whole
//! output before the first byte of it is printed, so that a failure never leaves half an answer behind (`prove`, which
//! takes long, prints case by case). Exit status:
//! 0 fine; 1 the answer is no (does not fit, there is a diff); 2 usage, unreadable or invalid input.

mod apply;
mod arguments;
mod change;
mod check;
mod doctor;
mod facts;
mod host_wide;
mod input;
mod judge;
mod many;
mod output;
mod prove;
mod shell;
mod size;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use arguments::{Arguments, Verb};
use output::{Failure, Output, Terminal};

/// Runs barfit as it was called: `arguments` are those of the process, the program's name first.
///
/// One binary, several names: which one it was called by is decided here, before the command line is read.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    command_line(arguments.into_iter().collect())
}

/// Called as `barfit`.
fn command_line(arguments: Vec<OsString>) -> ExitCode {
    let terminal = Terminal::new();
    let parsed = match Arguments::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error, &terminal),
    };
    let terminal = terminal.with_colour(parsed.color);
    match verb(parsed.verb, &terminal) {
        Ok(output) => terminal.show(output),
        Err(failure) => terminal.fail(&failure),
    }
}

fn verb(verb: Verb, terminal: &Terminal) -> Result<Output, Failure> {
    match verb {
        Verb::Check(arguments) => check::check(&arguments, terminal.paint()),
        Verb::Diff(arguments) => change::diff(&arguments, terminal.paint()),
        Verb::Rewrite(arguments) => change::rewrite(&arguments),
        Verb::Size(arguments) => size::size(&arguments, terminal.paint()),
        Verb::Prove(arguments) => prove::prove(&arguments),
        Verb::Host(arguments) => facts::host(&arguments, terminal.paint()),
        Verb::Catalogue(arguments) => facts::catalogue(&arguments, terminal.paint()),
        Verb::Apply(arguments) => apply::apply(&arguments, terminal.paint()),
        Verb::Doctor(arguments) => doctor::doctor(&arguments),
        Verb::Install(arguments) => host_wide::install(&arguments),
        Verb::Uninstall(arguments) => host_wide::uninstall(&arguments),
        Verb::Status { format } => host_wide::status(format),
        Verb::Completions { shell } => Ok(shell::completions(shell)),
        Verb::Man { verb } => shell::man(verb.as_deref()),
    }
}

/// What clap has to say: help and version are answers, everything else a failure.
fn usage(error: &clap::Error, terminal: &Terminal) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            terminal.show(Output::text(error.render().to_string()))
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            terminal.fail(&Failure::new(format!("a verb is missing\n\n{}", error.render())))
        }
        _ => {
            let text = error.render().to_string();
            terminal.fail(&Failure::new(text.strip_prefix("error: ").unwrap_or(&text).trim_end()))
        }
    }
}
