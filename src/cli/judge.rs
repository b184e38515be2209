//! What a judgement rests on, gathered once for all domains of a command: host, firmware, policy.

use std::path::{Path, absolute};

use super::arguments::Judging;
use super::input::{Input, text_file};
use super::output::Failure;
use crate::catalogue::Entry;
use crate::deliver::here;
use crate::domain::Domain;
use crate::guest::{FirmwareChoice, Source};
use crate::host::{Depth, Host, HostFacts, Version};
use crate::layout::OvmfRules;
use crate::plan::{Answer, Policy, Request, answer};

/// Root of this machine's file system.
const ROOT: &str = "/";

/// Ready to judge.
pub(super) struct Judge {
    /// `--host`.
    host: Option<HostFacts>,
    /// Facts that this machine's administrator has written down.
    written: Option<HostFacts>,
    policy: Policy,
    firmware: Option<FirmwareChoice>,
    assume_gpu: Option<&'static Entry>,
}

/// A domain and the answer for it.
pub(super) struct Judged {
    pub(super) input: Input,
    pub(super) domain: Domain,
    pub(super) answer: Answer,
    /// What could not be read of this machine, and why.
    pub(super) notes: Vec<String>,
}

impl Judge {
    pub(super) fn new(arguments: &Judging) -> Result<Judge, Failure> {
        let host = arguments.host.as_deref().map(host_file).transpose()?;
        let written = match host {
            Some(_) => None,
            None => here::host_file(Path::new(ROOT)).map_err(Failure::new)?,
        };
        let policy = match arguments.policy.as_deref() {
            Some(path) => {
                let (label, text) = text_file(path)?;
                let mut policy = Policy::default();
                policy.add(&text).map_err(|error| Failure::new(format!("{label}:{error}")))?;
                policy
            }
            None => here::policy(Path::new(ROOT)).map_err(Failure::new)?,
        };
        let firmware = arguments.firmware.as_deref().map(|text| firmware(text, host.as_ref())).transpose()?;
        Ok(Judge { host, written, policy, firmware, assume_gpu: arguments.assume_gpu })
    }

    /// Judges one domain.
    pub(super) fn judge(&self, input: Input) -> Result<Judged, Failure> {
        let domain =
            Domain::parse(&input.bytes).map_err(|error| Failure::new(format!("{}:{error}", input.label)))?;
        let here;
        let (host, host_is, notes) = match &self.host {
            Some(host) => (host, Source::HostFile, Vec::new()),
            None => {
                let (host, host_is, notes) =
                    here::facts(&Host::at(Path::new(ROOT)), &domain, self.written.clone());
                here = host;
                (&here, host_is, notes)
            }
        };
        let answer = answer(&Request {
            domain: &domain,
            host,
            host_is,
            policy: &self.policy,
            firmware: self.firmware.as_ref(),
            assume_gpu: self.assume_gpu,
        });
        Ok(Judged { input, domain, answer, notes })
    }
}

/// Reads a file of host facts.
pub(super) fn host_file(path: &Path) -> Result<HostFacts, Failure> {
    let (label, text) = text_file(path)?;
    HostFacts::from_json(&text).map_err(|error| Failure::new(format!("{label}:{error}")))
}

/// What `--firmware` means: an era, a SeaBIOS, or a file that the host's facts describe or that is here.
pub(super) fn firmware(text: &str, host: Option<&HostFacts>) -> Result<FirmwareChoice, Failure> {
    let seabios = text.strip_prefix("seabios");
    if seabios == Some("") {
        return Ok(FirmwareChoice::SeaBios(None));
    }
    if let Some(version) = seabios.and_then(|rest| rest.strip_prefix('-'))
        && version.parse::<Version>().is_ok()
    {
        return Ok(FirmwareChoice::SeaBios(Some(version.to_owned())));
    }
    if !text.contains('/') && OvmfRules::era(text).is_some() {
        return Ok(FirmwareChoice::Era(text.to_owned()));
    }
    let path = absolute(text).map_err(|error| Failure::new(format!("--firmware {text}: {error}")))?;
    let described = host.and_then(|host| host.firmware.iter().find(|file| file.path == path)).cloned();
    let found = described.or_else(|| Host::here().firmware_file(&path, Depth::Image));
    found.map(FirmwareChoice::File).ok_or_else(|| {
        Failure::new(format!(
            "--firmware {text}: neither an era like 202211, nor seabios-1.16.2, nor a file with OVMF or SeaBIOS in it"
        ))
    })
}
