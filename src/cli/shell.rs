//! `completions` and `man`: generated from the command line's own description.

use clap::CommandFactory;
use clap_complete::Shell;

use super::arguments::Arguments;
use super::output::{Failure, Output};

pub(super) fn completions(shell: Shell) -> Output {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "barfit", &mut text);
    Output::text(text)
}

/// The manual page of barfit, or of one of its verbs, `barfit-VERB`.
pub(super) fn man(verb: Option<&str>) -> Result<Output, Failure> {
    let mut page = Arguments::command();
    if let Some(verb) = verb {
        // Building gives each verb its full name.
        page.build();
        page = page.find_subcommand(verb).cloned().ok_or_else(|| {
            Failure::new(format!("man: there is no verb `{verb}`; `barfit --help` lists them"))
        })?;
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(page)
        .render(&mut text)
        .map_err(|error| Failure::new(format!("the manual page cannot be made: {error}")))?;
    Ok(Output::text(text))
}
