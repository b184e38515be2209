//! `doctor`.

use std::path::Path;

use super::arguments::{Doctor, Format};
use super::input;
use super::judge::Judge;
use super::output::{Failure, Output};
use crate::deliver::doctor;
use crate::host::Host;

const ROOT: &str = "/";

pub(super) fn doctor(arguments: &Doctor) -> Result<Output, Failure> {
    let root = Path::new(ROOT);
    let mut checks = Vec::new();
    let log = arguments.dmesg.as_deref().map(input::file).transpose()?;
    let domain = arguments.domain.as_slice();
    // A file, or what libvirt knows by this name.
    let here = domain.iter().all(|name| *name == "-" || Path::new(name).exists());
    let uri = arguments.judging.connect.as_deref().or((!here).then_some("qemu:///system"));
    let judged = input::domains(domain, uri)?.pop().map(|input| Judge::new(&arguments.judging)?.judge(input));
    let judged = judged.transpose()?;
    // With a log alone the question is about a guest, perhaps of another host.
    if log.is_none() || judged.is_some() {
        checks.extend(doctor::installation(root));
        checks.extend(doctor::machine(&Host::at(root).facts().0));
    }
    if let Some(judged) = &judged {
        checks.extend(doctor::guest(root, &judged.domain, &judged.answer));
    }
    if let Some(log) = log {
        let answer = judged.as_ref().map(|judged| &judged.answer);
        checks.extend(doctor::log(&String::from_utf8_lossy(&log.bytes), answer));
    }
    let stdout = match arguments.format {
        Format::Human => doctor::text(&checks),
        Format::Json => doctor::json(&checks)?,
    };
    Ok(Output { no: doctor::worst(&checks) == doctor::State::Fail, ..Output::text(stdout) })
}
