//! What CPUID tells the guest: vendor, width, 1 GiB pages.
//!
//! Under KVM the vendor is the host's whatever the model says, and a feature the host lacks is not there; under TCG
//! the model decides (measured: Skylake-Server on an AMD host is AuthenticAMD under KVM, GenuineIntel under TCG).
//! The width is 40 bits unless somebody asked for another. Sources: QEMU target/i386/host-cpu.c and cpu.c (7.2,
//! 10.0), libvirt src/qemu/qemu_command.c (9.0, 11.3).

use super::cpu_model::{CpuModel, cpu_model};
use crate::domain::{Cpu, CpuMode, Domain, FeaturePolicy, MaxPhysAddr, MaxPhysAddrMode, VirtType};
use crate::finding::{Code, Finding};
use crate::host::{HostFacts, Version};
use crate::layout::{CpuVendor, GuestCpu};
use crate::units::PhysBits;

/// libvirt that knows `<maxphysaddr>`, and its `limit=`; an older one drops what it does not know in silence.
pub(crate) const MAXPHYSADDR_SINCE: Version = Version(8, 7, 0);
pub(crate) const LIMIT_SINCE: Version = Version(9, 3, 0);

/// How the guest's width can be changed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum WidthControl {
    /// A number of the guest's own (named models, host-model, all of TCG).
    Own,
    /// A number of the guest's own, for libvirt turns the host's width off: it does so as long as `<maxphysaddr
    /// mode='emulate'>` has no `bits=`, which then must not get any. `-global` gives the number.
    OwnByGlobal,
    /// The host's width, which can only be limited (`-cpu host` and `max` under KVM, and machine types that turn
    /// `host-phys-bits` on).
    HostLimited,
    /// A 32-bit model: fixed.
    Fixed,
}

/// The guest's CPU, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedCpu {
    /// What CPUID says.
    pub cpu: GuestCpu,
    /// How the width can be changed.
    pub control: WidthControl,
    /// What set the width, in words: `QEMU's default`, `<maxphysaddr mode='emulate' bits='43'/>`.
    pub because: String,
    /// Somebody asked for this width, as opposed to QEMU's default.
    pub chosen: bool,
    /// `<maxphysaddr>`, as much of it as this libvirt knows.
    pub maxphysaddr: Option<MaxPhysAddr>,
    /// Whether `pdpe1gb` can be had by asking for it: the host has it, or TCG emulates it.
    pub gib_pages_available: bool,
}

/// Resolves the CPU. `host_phys_bits` says that the machine type turns that property on for every model.
pub(super) fn resolve(
    domain: &Domain,
    host: &HostFacts,
    host_phys_bits: bool,
    findings: &mut Vec<Finding>,
) -> ResolvedCpu {
    let tcg = domain.virt == VirtType::Qemu;
    let absent = Cpu::default();
    let cpu = domain.cpu.as_ref().unwrap_or(&absent);
    let model = named_model(cpu, tcg, findings);
    let host_cpu = host.cpu.as_ref();
    let host_gib_pages = host_cpu.and_then(|c| c.pdpe1gb);
    let follows_host = !tcg && cpu.mode != CpuMode::Custom;

    let vendor = vendor(cpu, model, tcg, host_cpu.and_then(|c| c.vendor.as_deref()), findings);
    let gib_pages = match feature(cpu, "pdpe1gb") {
        Some(wanted) => wanted && (tcg || host_gib_pages.unwrap_or(true)),
        // Every server CPU of the last decade has them; libvirt's host-model carries them over.
        None if follows_host => host_gib_pages.unwrap_or(true),
        None => model.gib_pages && (tcg || host_gib_pages.unwrap_or(true)),
    };
    let host_la57 = host_cpu.and_then(|c| c.la57);
    let la57 = match feature(cpu, "la57") {
        Some(wanted) => wanted && (tcg || host_la57.unwrap_or(true)),
        None if follows_host => host_la57.unwrap_or(false),
        None => model.la57 && (tcg || host_la57.unwrap_or(true)),
    };
    let maxphysaddr = known_to_libvirt(cpu.maxphysaddr, host, findings);
    // All of the CPU that its width depends on.
    let left = Cpu { mode: cpu.mode, maxphysaddr, ..Cpu::default() };
    let width = width(domain, &left, model, host, tcg, host_phys_bits, findings);
    ResolvedCpu {
        cpu: GuestCpu {
            vendor,
            phys_bits: width.bits,
            guest_phys_bits: None,
            gib_pages,
            la57,
            long_mode: model.long_mode,
        },
        control: width.control,
        because: width.because,
        chosen: width.chosen,
        maxphysaddr,
        gib_pages_available: tcg || host_gib_pages == Some(true),
    }
}

/// The model's row; for modes without a model of their own, what QEMU gives under TCG.
fn named_model(cpu: &Cpu, tcg: bool, findings: &mut Vec<Finding>) -> CpuModel {
    // `-cpu max` under TCG, measured: AuthenticAMD with 1 GiB pages and la57.
    const MAX: CpuModel = CpuModel { vendor: CpuVendor::Amd, long_mode: true, gib_pages: true, la57: true };
    const QEMU64: CpuModel =
        CpuModel { vendor: CpuVendor::Amd, long_mode: true, gib_pages: false, la57: false };
    match (cpu.mode, cpu.model.as_deref()) {
        (CpuMode::HostPassthrough | CpuMode::Maximum | CpuMode::HostModel, None) => MAX,
        (_, None) => QEMU64,
        (_, Some(name)) => cpu_model(name).unwrap_or_else(|| {
            findings.push(Finding::warning(
                Code::CpuAssumed,
                format!("CPU model `{name}` is not known: assumed to be 64-bit with 1 GiB pages"),
            ));
            let vendor = if tcg { CpuVendor::Intel } else { CpuVendor::Other };
            CpuModel { vendor, long_mode: true, gib_pages: true, la57: false }
        }),
    }
}

/// Whether the XML gives or takes a feature; `None` when it does not say.
fn feature(cpu: &Cpu, name: &str) -> Option<bool> {
    let policy = cpu.features.iter().rev().find(|(n, _)| n == name).map(|(_, policy)| *policy)?;
    Some(matches!(policy, FeaturePolicy::Force | FeaturePolicy::Require | FeaturePolicy::Optional))
}

fn vendor(
    cpu: &Cpu,
    model: CpuModel,
    tcg: bool,
    host: Option<&str>,
    findings: &mut Vec<Finding>,
) -> CpuVendor {
    let by_name = |name: &str| match name {
        "GenuineIntel" => CpuVendor::Intel,
        "AuthenticAMD" => CpuVendor::Amd,
        _ => CpuVendor::Other,
    };
    if let Some(id) = cpu.vendor_id.as_deref() {
        return by_name(id);
    }
    if tcg {
        return model.vendor;
    }
    if let Some(host) = host {
        return by_name(host);
    }
    let (guess, from) = match (cpu.vendor.as_deref(), cpu.model.as_deref()) {
        (Some("Intel"), _) => (CpuVendor::Intel, "the domain's <vendor>"),
        (Some("AMD"), _) => (CpuVendor::Amd, "the domain's <vendor>"),
        (_, Some(_)) => (model.vendor, "the CPU model"),
        _ => (CpuVendor::Intel, "the most common case"),
    };
    let name = match guess {
        CpuVendor::Intel => "Intel",
        CpuVendor::Amd => "AMD",
        CpuVendor::Other => "neither Intel nor AMD",
    };
    findings.push(Finding::warning(
        Code::CpuAssumed,
        format!("the host's CPU vendor is not known: assumed to be {name} by {from}"),
    ));
    guess
}

/// What is left of `<maxphysaddr>` after this libvirt has read it.
fn known_to_libvirt(
    written: Option<MaxPhysAddr>,
    host: &HostFacts,
    findings: &mut Vec<Finding>,
) -> Option<MaxPhysAddr> {
    let libvirt = host.libvirt.as_ref().and_then(|program| program.number());
    let lacks = |since: Version| libvirt.is_some_and(|version| version < since);
    let (what, left) = match written? {
        _ if lacks(MAXPHYSADDR_SINCE) => ("<maxphysaddr>", None),
        width if width.limit.is_some() && lacks(LIMIT_SINCE) => {
            ("limit= of <maxphysaddr>", Some(MaxPhysAddr { limit: None, ..width }))
        }
        width => return Some(width),
    };
    if let Some(version) = libvirt {
        findings.push(Finding::warning(
            Code::BitsIgnored,
            format!("libvirt {version} does not know {what} and drops it: it has no effect"),
        ));
    }
    left
}

struct ChosenWidth {
    bits: PhysBits,
    control: WidthControl,
    because: String,
    chosen: bool,
}

fn width(
    domain: &Domain,
    cpu: &Cpu,
    model: CpuModel,
    host: &HostFacts,
    tcg: bool,
    machine_host_phys_bits: bool,
    findings: &mut Vec<Finding>,
) -> ChosenWidth {
    if !model.long_mode {
        let because = "a 32-bit CPU model, whose width is fixed".to_owned();
        return ChosenWidth { bits: PhysBits::MIN, control: WidthControl::Fixed, because, chosen: false };
    }
    let globals = &domain.command_line.cpu;
    let valid = |bits: u64, what: &str, findings: &mut Vec<Finding>| {
        let checked = PhysBits::new(bits);
        if checked.is_none() {
            findings.push(Finding::error(
                Code::BitsInvalid,
                format!(
                    "{what} asks for {bits} phys-bits; QEMU accepts 32 to 52, so the guest does not start"
                ),
            ));
        }
        checked
    };
    let explicit = cpu.maxphysaddr;
    let wants_host = explicit.is_some_and(|m| m.mode == MaxPhysAddrMode::Passthrough)
        || globals.host_phys_bits == Some(true);
    let off_without_bits = explicit.is_some_and(|m| m.mode == MaxPhysAddrMode::Emulate && m.bits.is_none());
    let wants_own = globals.host_phys_bits == Some(false) || off_without_bits;
    let by_mode = !tcg && matches!(cpu.mode, CpuMode::HostPassthrough | CpuMode::Maximum);
    let host_width = !tcg && (wants_host || ((by_mode || machine_host_phys_bits) && !wants_own));
    let asked = explicit.filter(|m| m.mode == MaxPhysAddrMode::Emulate).and_then(|m| m.bits);

    if host_width {
        let because = if wants_host {
            "host-phys-bits is asked for".to_owned()
        } else if by_mode {
            "the CPU mode gives the guest the host's width".to_owned()
        } else {
            "the machine type turns host-phys-bits on".to_owned()
        };
        if let Some(bits) = asked.or(globals.phys_bits) {
            findings.push(Finding::warning(
                Code::BitsIgnored,
                format!(
                    "{bits} phys-bits are asked for but have no effect: {because}, and QEMU lets that win"
                ),
            ));
        }
        let limit = explicit.and_then(|m| m.limit).or(globals.host_phys_bits_limit);
        let limit = limit.filter(|l| *l != 0).and_then(|l| valid(l, "the limit of the width", findings));
        let known = host.cpu.as_ref().and_then(|c| c.phys_bits).and_then(|b| PhysBits::new(b.into()));
        let bits = match (known, limit) {
            (Some(bits), Some(limit)) => bits.min(limit),
            (Some(bits), None) => bits,
            // 46 is what OVMF makes of anything wider: the best that can be assumed, and the most common.
            (None, Some(limit)) => limit,
            (None, None) => PhysBits::ASSUMED_HOST,
        };
        return ChosenWidth { bits, control: WidthControl::HostLimited, because, chosen: limit.is_some() };
    }
    let by_default = !tcg && (by_mode || machine_host_phys_bits);
    let control = if by_default && off_without_bits && globals.host_phys_bits != Some(false) {
        WidthControl::OwnByGlobal
    } else {
        WidthControl::Own
    };
    let own = |bits: PhysBits, because: String, chosen: bool| ChosenWidth { bits, control, because, chosen };
    if let Some(bits) = asked {
        let because = format!("<maxphysaddr mode='emulate' bits='{bits}'/>");
        let bits = valid(bits, &because, findings).unwrap_or(PhysBits::QEMU_DEFAULT);
        return own(bits, because, true);
    }
    if let Some(bits) = globals.phys_bits {
        let because = format!("phys-bits={bits} in <qemu:commandline>");
        let bits = valid(bits, &because, findings).unwrap_or(PhysBits::QEMU_DEFAULT);
        return own(bits, because, true);
    }
    own(PhysBits::QEMU_DEFAULT, "QEMU's default".to_owned(), false)
}
