//! `host` and `catalogue`: what barfit knows before it is asked about a domain.

use std::process::{Command, Stdio};

use super::arguments::{Catalogue, Format, HostArguments};
use super::judge::host_file;
use super::output::{Failure, Output};
use crate::catalogue::{self, Entry};
use crate::host::{Host, Program, Version};
use crate::report::{Paint, catalogue_json, catalogue_text, host_text};

pub(super) fn host(arguments: &HostArguments, paint: Paint) -> Result<Output, Failure> {
    let (facts, notes) = match arguments.host.as_deref() {
        Some(path) => (host_file(path)?, Vec::new()),
        None => {
            let (mut facts, notes) = Host::here().facts();
            facts.qemu = facts.qemu.or_else(installed_qemu);
            (facts, notes)
        }
    };
    let stdout = match arguments.format {
        Format::Json => facts.to_json()?,
        Format::Human => host_text(&facts, paint),
    };
    Ok(Output { notes, ..Output::text(stdout) })
}

/// The version of the QEMU in PATH, as it says itself: where neither libvirt nor a package knows it.
fn installed_qemu() -> Option<Program> {
    let output = Command::new("qemu-system-x86_64").arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version: Version =
        text.split_whitespace().skip_while(|word| *word != "version").nth(1)?.parse().ok()?;
    Some(Program { version: version.to_string() })
}

pub(super) fn catalogue(arguments: &Catalogue, paint: Paint) -> Result<Output, Failure> {
    let wanted = arguments.filter.as_deref().unwrap_or_default().to_lowercase();
    let matches = |entry: &&Entry| {
        entry.slug.contains(&wanted)
            || entry.name.to_lowercase().contains(&wanted)
            || format!("{}:{}", entry.vendor, entry.device).contains(&wanted)
    };
    let exact = catalogue::by_slug(&wanted);
    let entries: Vec<&Entry> =
        exact.map_or_else(|| catalogue::entries().iter().filter(matches).collect(), |entry| vec![entry]);
    let stdout = match arguments.format {
        Format::Json => catalogue_json(&entries)?,
        Format::Human => catalogue_text(&entries, paint),
    };
    Ok(Output { no: entries.is_empty(), ..Output::text(stdout) })
}
