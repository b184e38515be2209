//! `install`, `uninstall` and `status`: what is about the whole host rather than one domain.

use std::env;
use std::path::{Path, absolute};

use super::arguments::{Format, Install, Uninstall};
use super::output::{Failure, Output};
use crate::deliver::{install, status};

pub(super) fn install(arguments: &Install) -> Result<Output, Failure> {
    let program = env::current_exe()
        .map_err(|error| Failure::new(format!("the path of this program is not known: {error}")))?;
    let options = install::Options {
        root: root(&arguments.root)?,
        program,
        dry_run: arguments.dry_run,
        no_shim: arguments.no_shim,
    };
    let report = install::install(&options).map_err(|error| Failure::new(format!("install: {error}")))?;
    Ok(lines(&report, "nothing to do: everything is in its place"))
}

pub(super) fn uninstall(arguments: &Uninstall) -> Result<Output, Failure> {
    let report = install::uninstall(&root(&arguments.root)?, arguments.dry_run)
        .map_err(|error| Failure::new(format!("uninstall: {error}")))?;
    Ok(lines(&report, "nothing to do"))
}

pub(super) fn status(format: Format) -> Result<Output, Failure> {
    let root = Path::new("/");
    Ok(Output::text(match format {
        Format::Human => status::text(root),
        Format::Json => status::json(root)?,
    }))
}

fn root(path: &Path) -> Result<std::path::PathBuf, Failure> {
    let says = |why: String| Failure::new(format!("--root {}: {why}", path.display()));
    let root = absolute(path).map_err(|error| says(error.to_string()))?;
    if !root.is_dir() {
        return Err(says("this is no folder".to_owned()));
    }
    Ok(root)
}

fn lines(report: &[String], nothing: &str) -> Output {
    let text: String = report.iter().map(|line| format!("{line}\n")).collect();
    Output::text(if text.is_empty() { format!("{nothing}\n") } else { text })
}
