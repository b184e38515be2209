//! Proofs for programs: `barfit/prove/1`. Addresses and sizes are hex strings, as everywhere in barfit's JSON.

use std::path::Path;

use serde::Serialize;

use super::observe::Seen;
use super::proof::{Proof, complaints};
use crate::guest::HostDevice;
use crate::plan::Placement;
use crate::units::{Addr, BarKind, Bytes, PciAddress, PhysBits};

/// The value of `schema`.
const SCHEMA: &str = "barfit/prove/1";

#[derive(Debug, Serialize)]
struct Document<'a> {
    schema: &'static str,
    domain: &'a str,
    firmware: Firmware<'a>,
    /// Every proof agrees, and none ran out of time.
    agrees: bool,
    proofs: Vec<Case<'a>>,
}

#[derive(Debug, Serialize)]
struct Firmware<'a> {
    path: &'a Path,
    rules: &'a str,
}

#[derive(Debug, Serialize)]
struct Case<'a> {
    /// `before` or `after`.
    which: String,
    phys_bits: PhysBits,
    /// `placed`: the firmware was done. `refused`: QEMU does not start it. `hung`, `timed-out`.
    outcome: &'static str,
    /// QEMU's words, or how a hang was told.
    because: Option<&'a str>,
    seconds: u64,
    devices: Vec<Device<'a>>,
    agrees: bool,
    addresses_agree: bool,
    differences: &'a [String],
    /// What the guest that was booted has otherwise than the domain.
    notes: &'a [String],
    /// Lines in which the Linux guest complains; `null` where none was booted.
    linux: Option<Vec<&'a str>>,
}

#[derive(Debug, Serialize)]
struct Device<'a> {
    host: Option<PciAddress>,
    guest: Option<PciAddress>,
    name: &'a str,
    gpu: bool,
    /// Every BAR that was stood for can be used.
    placed: bool,
    /// The largest can, another cannot.
    partly: bool,
    bars: Vec<Register>,
}

#[derive(Debug, Serialize)]
struct Register {
    index: u8,
    size: Bytes,
    kind: BarKind,
    address: Option<Addr>,
    usable: bool,
}

/// Proofs of one domain as one object, each under its title; `devices` are those whose fate matters.
///
/// # Errors
/// JSON that cannot be written.
pub fn proof_json(
    domain: &str,
    rules: &str,
    path: &Path,
    devices: &[HostDevice],
    proofs: &[(&str, Proof)],
) -> Result<String, serde_json::Error> {
    let document = Document {
        schema: SCHEMA,
        domain,
        firmware: Firmware { path, rules },
        agrees: proofs.iter().all(|(_, proof)| proof.is_as_predicted()),
        proofs: proofs.iter().map(|(title, proof)| case(title, devices, proof)).collect(),
    };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn case<'a>(title: &str, devices: &'a [HostDevice], proof: &'a Proof) -> Case<'a> {
    let (outcome, because) = match &proof.observed.seen {
        Seen::Placed(_) => ("placed", None),
        Seen::Refused(message) => ("refused", Some(message.as_str())),
        Seen::Hung(sign) => ("hung", Some(sign.as_str())),
        Seen::TimedOut => ("timed-out", None),
    };
    let devices = proof.fates(devices).into_iter().map(|fate| Device {
        host: fate.device.host,
        guest: fate.device.guest,
        name: &fate.device.name,
        gpu: fate.device.gpu,
        placed: fate.placement == Placement::Placed,
        partly: fate.placement == Placement::Partly,
        bars: fate
            .bars
            .iter()
            .map(|fate| Register {
                index: fate.bar.index,
                size: fate.bar.size,
                kind: fate.bar.kind,
                address: fate.address,
                usable: fate.usable(),
            })
            .collect(),
    });
    Case {
        which: title.to_lowercase(),
        phys_bits: proof.stand.guest.cpu.phys_bits,
        outcome,
        because,
        seconds: proof.observed.time.as_secs(),
        devices: devices.collect(),
        agrees: proof.is_as_predicted(),
        addresses_agree: proof.agreement.addresses,
        differences: &proof.agreement.differences,
        notes: &proof.notes,
        linux: proof.observed.console.as_deref().map(complaints),
    }
}
