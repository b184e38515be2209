//! `barfit/check/1`: the answer for programs. Field names, words and their order are a contract.

use serde::Serialize;

use super::placement::{PlacedDevice, placements};
use crate::domain::Domain;
use crate::finding::Finding;
use crate::guest::Source;
use crate::layout::{Layout, WindowRule};
use crate::plan::{Answer, Verdict};
use crate::units::{Addr, BarKind, Bytes, PciAddress, PhysBits};

/// The value of `schema`.
pub const SCHEMA: &str = "barfit/check/1";

/// The answer for one domain.
///
/// What is not known is `null`: the whole of `phys_bits`, `ram` and `window` where the guest's layout is not known,
/// and `placed` where the verdict is `unknown`.
#[derive(Clone, Debug, Serialize)]
pub struct Check<'a> {
    schema: &'static str,
    domain: Name<'a>,
    verdict: Verdict,
    phys_bits: Option<Width>,
    ram: Option<Ram>,
    window: Option<Window>,
    gpus: Gpus,
    devices: Vec<Device<'a>>,
    plan: Plan<'a>,
    findings: &'a [Finding],
}

#[derive(Clone, Debug, Serialize)]
struct Name<'a> {
    name: &'a str,
    uuid: Option<&'a str>,
}

#[derive(Clone, Debug, Serialize)]
struct Width {
    cpuid: PhysBits,
    usable: PhysBits,
    because: String,
}

#[derive(Clone, Debug, Serialize)]
struct Ram {
    below_4g: Bytes,
    above_4g_base: Option<Addr>,
    top: Addr,
}

#[derive(Clone, Debug, Serialize)]
struct Window {
    base: Addr,
    size: Bytes,
    rule: &'static str,
    needed: Bytes,
}

#[derive(Clone, Debug, Serialize)]
struct Gpus {
    total: usize,
    placed: Option<usize>,
}

#[derive(Clone, Debug, Serialize)]
struct Device<'a> {
    host: Option<PciAddress>,
    guest: Option<PciAddress>,
    name: &'a str,
    gpu: bool,
    placed: Option<bool>,
    source: Option<Source>,
    bars: Vec<Register>,
}

#[derive(Clone, Debug, Serialize)]
struct Register {
    index: u8,
    size: Bytes,
    kind: BarKind,
    address: Option<Addr>,
}

#[derive(Clone, Debug, Serialize)]
struct Plan<'a> {
    phys_bits: Option<PhysBits>,
    mmio64_mib: Option<u32>,
    changes: Vec<String>,
    result: Outcome<'a>,
}

#[derive(Clone, Debug, Serialize)]
struct Outcome<'a> {
    verdict: Verdict,
    window: Option<Window>,
    gpus: Gpus,
    devices: Vec<Device<'a>>,
}

impl<'a> Check<'a> {
    /// The answer for a domain.
    pub fn new(domain: &'a Domain, answer: &'a Answer) -> Check<'a> {
        let present = answer.present.as_ref();
        Check {
            schema: SCHEMA,
            domain: Name { name: &domain.name, uuid: domain.uuid.as_deref() },
            verdict: answer.verdict,
            phys_bits: present.map(|layout| Width {
                cpuid: layout.width.cpuid,
                usable: layout.width.usable,
                because: super::human::because(answer, layout),
            }),
            ram: present.map(|layout| Ram {
                below_4g: layout.ram.below_4g,
                above_4g_base: layout.ram.above_4g.map(|span| Addr(span.first())),
                top: layout.ram.top,
            }),
            window: present.and_then(window),
            gpus: gpus(answer, answer.verdict, present),
            devices: devices(answer, answer.verdict, present),
            plan: Plan {
                phys_bits: answer.plan.phys_bits,
                mmio64_mib: answer.plan.mmio64_mib,
                changes: answer.plan.changes.iter().map(ToString::to_string).collect(),
                result: Outcome {
                    verdict: answer.plan.verdict,
                    window: answer.plan.layout.as_ref().and_then(window),
                    gpus: gpus(answer, answer.plan.verdict, answer.plan.layout.as_ref()),
                    devices: devices(answer, answer.plan.verdict, answer.plan.layout.as_ref()),
                },
            },
            findings: &answer.findings,
        }
    }

    /// As indented text, ending in a newline.
    ///
    /// # Errors
    /// None that is known; serde's signature has one.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// In one line, ending in a newline: JSON Lines, for several domains.
    ///
    /// # Errors
    /// As [`Check::to_text`].
    pub fn to_line(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self).map(|text| text + "\n")
    }
}

fn window(layout: &Layout) -> Option<Window> {
    let window = layout.window?;
    Some(Window {
        base: Addr(window.span.first()),
        size: Bytes(window.span.size()),
        rule: rule(window.rule),
        needed: window.needed,
    })
}

/// The word of a rule.
pub(super) fn rule(rule: WindowRule) -> &'static str {
    match rule {
        WindowRule::Classic => "classic",
        WindowRule::DynamicEighth => "dynamic-1/8",
        WindowRule::DynamicQuarter => "dynamic-1/4",
        WindowRule::FwCfg => "fw_cfg",
        WindowRule::SeaBios => "seabios",
    }
}

fn gpus(answer: &Answer, verdict: Verdict, layout: Option<&Layout>) -> Gpus {
    let placed = (verdict != Verdict::Unknown).then(|| answer.gpus_placed(layout));
    Gpus { total: answer.assembled.gpus(), placed }
}

fn devices<'a>(answer: &'a Answer, verdict: Verdict, layout: Option<&Layout>) -> Vec<Device<'a>> {
    let known = verdict != Verdict::Unknown;
    let layout = layout.filter(|_| known);
    let device = |PlacedDevice { device, placed, registers }| Device {
        host: device.host,
        guest: device.guest,
        name: &device.name,
        gpu: device.gpu,
        placed: known.then_some(placed),
        source: device.source,
        bars: registers
            .iter()
            .map(|r| Register { index: r.bar.index, size: r.bar.size, kind: r.bar.kind, address: r.address })
            .collect(),
    };
    placements(answer, layout).into_iter().map(device).collect()
}
