//! The whole answer for one domain: how it fares as it stands, what to change, and how it fares then.

use super::change::{Change, CpuGlobal, MaxPhysAddrValue};
use super::decide::{self, Bound, Bounds, Candidate, Rig, Trial};
use super::explain;
use super::judge::{Placement, placement};
use super::policy::{Bits, FwCfg, Policy, Settings};
use crate::catalogue;
use crate::domain::{Domain, MaxPhysAddrMode, UnresolvedKind};
use crate::finding::{Code, Finding};
use crate::guest::{self, Assembled, FirmwareChoice, LIMIT_SINCE, MAXPHYSADDR_SINCE, Source, WidthControl};
use crate::host::{HostFacts, Version};
use crate::layout::{self, Firmware, Function, FunctionId, Guest, Layout, Outcome};
use crate::units::PhysBits;

/// What comes of a guest.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every device is placed.
    Fits,
    /// It boots, but some device is unplaced.
    DoesNotFit,
    /// QEMU or libvirt refuses it, or the firmware cannot finish.
    WillNotStart,
    /// Nothing of the host is passed through.
    NoPassthrough,
    /// It cannot be known; what is missing is said.
    Unknown,
}

/// What the caller says.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The guest.
    pub domain: &'a Domain,
    /// The machine.
    pub host: &'a HostFacts,
    /// Where `host` comes from.
    pub host_is: Source,
    /// The policy.
    pub policy: &'a Policy,
    /// `--firmware`.
    pub firmware: Option<&'a FirmwareChoice>,
    /// `--assume-gpu`.
    pub assume_gpu: Option<&'static catalogue::Entry>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// As the domain stands.
    pub verdict: Verdict,
    /// The guest in numbers, and its devices.
    pub assembled: Assembled,
    /// The layout as the domain stands; `None` where it is not known.
    pub present: Option<Layout>,
    /// First address that host and IOMMU cannot reach.
    pub limit: u64,
    /// The policy as it applies.
    pub settings: Settings,
    /// What to change.
    pub plan: Plan,
    /// Everything worth saying, errors first.
    pub findings: Vec<Finding>,
}

/// What to change, and what comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Width of the guest after the plan.
    pub phys_bits: Option<PhysBits>,
    /// `X-PciMmio64Mb` that the plan sets, in MiB.
    pub mmio64_mib: Option<u32>,
    /// The changes; none when nothing needs to change or nothing helps.
    pub changes: Vec<Change>,
    /// Verdict after the changes.
    pub verdict: Verdict,
    /// Layout after the changes.
    pub layout: Option<Layout>,
    /// The guest in numbers after the changes.
    pub guest: Option<Guest>,
}

impl Answer {
    /// How a device fares in a layout of this answer.
    pub fn placement(&self, layout: &Layout, id: FunctionId) -> Placement {
        placement(layout, id, self.limit)
    }

    /// Whether a device is placed in a layout of this answer, if only its largest BAR.
    pub fn is_placed(&self, layout: &Layout, id: FunctionId) -> bool {
        self.placement(layout, id) != Placement::Unplaced
    }

    /// GPUs placed in a layout of this answer.
    pub fn gpus_placed(&self, layout: Option<&Layout>) -> usize {
        let gpus = self.assembled.devices.iter().filter(|device| device.gpu);
        layout.map_or(0, |layout| gpus.filter(|gpu| self.is_placed(layout, gpu.id)).count())
    }
}

/// Answers.
pub fn answer(request: &Request<'_>) -> Answer {
    let Request { domain, host, policy, .. } = *request;
    let also_gpu = |vendor: &str, device: &str| policy.counts_as_gpu(vendor, device);
    let options = guest::Options {
        firmware: request.firmware,
        assume_gpu: request.assume_gpu,
        also_gpu: &also_gpu,
        host_is: request.host_is,
        networks_as_vf: false,
    };
    let mut assembled = guest::assemble(domain, host, &options);
    let mut findings = std::mem::take(&mut assembled.findings);
    let gpus = u32::try_from(assembled.gpus()).unwrap_or(u32::MAX);
    let settings =
        policy.settings(&domain.name, domain.flavor.as_deref(), gpus, &domain.policy, &mut findings);
    // Also one that no slot is left for: the guest is not known then, rather than without passthrough.
    if assembled.devices.is_empty() && !domain.passes_through() {
        let findings = vec![Finding::note(
            Code::NoPassthrough,
            "no device of the host is passed through: barfit never touches such a guest",
        )];
        return unanswered(Verdict::NoPassthrough, assembled, settings, findings);
    }
    let Some(guest) = assembled.guest.clone() else {
        return unanswered(Verdict::Unknown, assembled, settings, findings);
    };
    let limit = reach_limit(host);
    let present = Candidate { phys_bits: guest.cpu.phys_bits, require_gib_pages: false, mmio64_mib: None };
    let mut rig = Rig::new(&assembled, &guest, limit);
    let now = rig.try_out(present);
    if findings.iter().any(|finding| finding.code == Code::AddressInvalid) && assembled.unknown.is_empty() {
        // libvirt refuses it whatever its width.
        let mut layout = now.layout;
        layout.outcome = Outcome::Refused;
        let answer = unanswered(Verdict::WillNotStart, assembled, settings, findings);
        return Answer { present: Some(layout), limit, ..answer };
    }
    let refused = refused_by_libvirt(&assembled, host, &mut findings);
    if !refused
        && domain.unresolved.iter().any(|u| u.kind == UnresolvedKind::Network)
        && let Some(difference) = as_vf(request, &options, &now, present, limit)
    {
        findings.push(Finding::error(Code::NetworkMayBeVf, difference.clone()));
        assembled.unknown.push(difference);
        let answer = unanswered(Verdict::Unknown, assembled, settings, findings);
        return Answer { present: Some(now.layout), ..answer };
    }
    if !assembled.unknown.is_empty() {
        let answer = unanswered(Verdict::Unknown, assembled, settings, findings);
        return Answer { present: Some(now.layout), ..answer };
    }
    let verdict = if refused { Verdict::WillNotStart } else { verdict_of(&now) };

    let bounds = bounds(host, &assembled, present.phys_bits, &mut findings);
    let headroom = with_headroom(&assembled, &guest, settings.headroom_gpus, &mut findings);
    let mut roomy = headroom.as_ref().map(|(assembled, guest)| {
        let mut rig = Rig::new(assembled, guest, limit);
        let now = rig.try_out(present);
        (rig, now)
    });
    let content = !refused
        && settings.bits == Bits::Smallest
        && settings.fw_cfg != FwCfg::Always
        && now.fits
        && roomy.as_ref().is_none_or(|(_, now)| now.fits);
    let decision = (!content).then(|| match &mut roomy {
        Some((rig, now)) => decide::decide(rig, bounds, settings, now),
        None => decide::decide(&mut rig, bounds, settings, &now),
    });
    let then = match &decision {
        Some(decision) if headroom.is_some() => rig.try_out(decision.best.candidate),
        Some(decision) => decision.best.clone(),
        None => now.clone(),
    };
    let better = refused || then.fits || rank(&then) > rank(&now);
    let then = if better { then } else { now.clone() };
    let chosen = then.candidate;
    let changes = changes(&assembled, &guest, chosen, bounds, refused);
    let mut plan = Plan {
        phys_bits: Some(chosen.phys_bits),
        mmio64_mib: chosen.mmio64_mib,
        verdict: verdict_of(&then),
        layout: None,
        guest: Some(chosen.of(&guest)),
        changes,
    };
    let lost = refused && !plan.changes.iter().any(Change::sets_width);
    if lost {
        // What is refused cannot be put right: no other change is of use.
        plan.changes.clear();
        plan.verdict = Verdict::WillNotStart;
    }
    explain::explain(
        &explain::Case {
            domain,
            assembled: &assembled,
            guest: &guest,
            now: &now,
            then: &then,
            decision: decision.as_ref(),
            bounds,
            settings,
            limit,
            plan: &plan,
            refused,
        },
        &mut findings,
    );
    findings.sort_by_key(|finding| finding.level);
    let (mut present, mut planned) = (now.layout, then.layout);
    // What the firmware would have done is of no use to anybody.
    if refused {
        present.outcome = Outcome::Refused;
    }
    if lost {
        planned.outcome = Outcome::Refused;
    }
    plan.layout = Some(planned);
    Answer { verdict, assembled, present: Some(present), limit, settings, plan, findings }
}

/// An interface of a network may become a virtual function when the guest starts. Says so where that would change the
/// verdict; where it would not, it need not be known.
fn as_vf(
    request: &Request<'_>,
    options: &guest::Options<'_>,
    now: &Trial,
    present: Candidate,
    limit: u64,
) -> Option<String> {
    let options = guest::Options { networks_as_vf: true, ..*options };
    let other = guest::assemble(request.domain, request.host, &options);
    let trial = Rig::new(&other, other.guest.as_ref()?, limit).try_out(present);
    let differs = verdict_of(&trial) != verdict_of(now) || trial.gpus_placed != now.gpus_placed;
    differs.then(|| {
        "it depends on whether the network of an interface hands out a virtual function at start: \
         give the interface as type='hostdev', or a network that does not"
            .to_owned()
    })
}

fn unanswered(
    verdict: Verdict,
    assembled: Assembled,
    settings: Settings,
    mut findings: Vec<Finding>,
) -> Answer {
    let plan =
        Plan { phys_bits: None, mmio64_mib: None, changes: Vec::new(), verdict, layout: None, guest: None };
    findings.sort_by_key(|finding| finding.level);
    Answer { verdict, assembled, present: None, limit: u64::MAX, settings, plan, findings }
}

fn verdict_of(trial: &Trial) -> Verdict {
    match trial.layout.outcome {
        Outcome::Boots if trial.fits => Verdict::Fits,
        Outcome::Boots => Verdict::DoesNotFit,
        Outcome::Refused | Outcome::Hangs(_) | Outcome::GivesUp(_) => Verdict::WillNotStart,
    }
}

/// What makes one trial better than another.
fn rank(trial: &Trial) -> (bool, usize, usize) {
    (trial.layout.outcome == Outcome::Boots, trial.gpus_placed, trial.devices_placed)
}

fn host_bits(host: &HostFacts) -> Option<PhysBits> {
    host.cpu.as_ref().and_then(|cpu| cpu.phys_bits).and_then(|bits| PhysBits::new(bits.into()))
}

fn iommu_bits(host: &HostFacts) -> Option<PhysBits> {
    host.iommu_bits.map(|bits| PhysBits::new(bits.into()).unwrap_or(PhysBits::MAX))
}

/// First address beyond what both CPU and IOMMU of the host reach, as far as known.
fn reach_limit(host: &HostFacts) -> u64 {
    let bits = [host_bits(host), iommu_bits(host)].into_iter().flatten().min().unwrap_or(PhysBits::MAX);
    bits.limit()
}

/// libvirt rejects a `<maxphysaddr>` above the host's width, at define and at start.
fn refused_by_libvirt(assembled: &Assembled, host: &HostFacts, findings: &mut Vec<Finding>) -> bool {
    let bits = assembled.cpu.maxphysaddr.filter(|m| m.mode == MaxPhysAddrMode::Emulate).and_then(|m| m.bits);
    let invalid = findings.iter().any(|finding| finding.code == Code::BitsInvalid);
    match (bits, host_bits(host)) {
        (Some(bits), Some(host)) if bits > host.get().into() => {
            findings.push(Finding::error(
                Code::BitsAboveHost,
                format!("<maxphysaddr> asks for {bits} bits, the host has {host}: libvirt refuses to start the guest"),
            ));
            true
        }
        _ => invalid,
    }
}

fn bounds(host: &HostFacts, assembled: &Assembled, present: PhysBits, findings: &mut Vec<Finding>) -> Bounds {
    let known_host = host_bits(host);
    if known_host.is_none() {
        findings.push(Finding::warning(
            Code::HostBitsUnknown,
            format!(
                "the host's address width is not known: at most {} bits are planned. \
                 A snapshot taken by `barfit host` on the hypervisor says it",
                PhysBits::ASSUMED_HOST
            ),
        ));
    }
    if host.iommu_bits.is_none() {
        findings.push(Finding::note(
            Code::IommuBitsUnknown,
            "the IOMMU's address width is not known; it is taken to be no narrower than the host's CPU",
        ));
    }
    let limits = [
        (
            known_host.unwrap_or(PhysBits::ASSUMED_HOST),
            if known_host.is_some() { Bound::Host } else { Bound::Assumed },
        ),
        (iommu_bits(host).unwrap_or(PhysBits::MAX), Bound::Iommu),
        (PhysBits::MAX, Bound::Qemu),
    ];
    let (highest, by) =
        limits.into_iter().min_by_key(|(bits, _)| *bits).unwrap_or((PhysBits::MAX, Bound::Qemu));
    if assembled.cpu.control == WidthControl::Fixed {
        return Bounds { lowest: present, highest: present, by: Bound::Model };
    }
    let own = matches!(assembled.cpu.control, WidthControl::Own | WidthControl::OwnByGlobal);
    let lowest = if present <= highest && own { present } else { PhysBits::QEMU_DEFAULT.min(highest) };
    Bounds { lowest, highest, by }
}

/// The guest with room for GPUs to come: as many more of its largest GPU, each behind a port of its own. `None`
/// when the policy asks for none.
fn with_headroom(
    assembled: &Assembled,
    guest: &Guest,
    more: u8,
    findings: &mut Vec<Finding>,
) -> Option<(Assembled, Guest)> {
    let largest = |device: &&guest::HostDevice| device.bars.iter().map(|bar| bar.size).max();
    let model = assembled.devices.iter().filter(|device| device.gpu).max_by_key(largest)?;
    if more == 0 {
        return None;
    }
    findings.push(Finding::note(
        Code::Headroom,
        format!("room is kept for {more} more of {}, as the policy says", model.name),
    ));
    let (mut roomy, mut machine) = (assembled.clone(), guest.clone());
    for n in 0..u32::from(more) {
        let (gpu_id, port_id) = (FunctionId(u32::MAX - 2 * n), FunctionId(u32::MAX - 2 * n - 1));
        let gpu = Function {
            id: gpu_id,
            device: 0,
            function: 0,
            bars: model.bars.clone(),
            vga: model.vga,
            usb: false,
            role: layout::Role::Endpoint,
        };
        let port = layout::Bridge {
            kind: layout::BridgeKind::RootPort,
            hotplug: true,
            reserve: layout::Reserve::default(),
            children: vec![gpu],
        };
        // Where on the bus the ports will be is not known; behind all others is as good as anywhere.
        machine.bus.push(Function {
            id: port_id,
            device: 31,
            function: 7,
            bars: Vec::new(),
            vga: false,
            usb: false,
            role: layout::Role::Bridge(port),
        });
        roomy.devices.push(guest::HostDevice { id: gpu_id, ..model.clone() });
    }
    Some((roomy, machine))
}

/// The changes that make a candidate true.
fn changes(
    assembled: &Assembled,
    guest: &Guest,
    chosen: Candidate,
    bounds: Bounds,
    refused: bool,
) -> Vec<Change> {
    let mut changes = Vec::new();
    if chosen.phys_bits != guest.cpu.phys_bits || refused {
        changes.extend(width_change(assembled, chosen.phys_bits, bounds, refused));
    }
    if chosen.require_gib_pages {
        changes.push(Change::RequireFeature("pdpe1gb"));
    }
    let present = guest.mmio64_mb.as_deref().and_then(|text| text.parse().ok());
    if let Some(mib) = chosen.mmio64_mib.filter(|mib| present != Some(*mib)) {
        changes.push(Change::SetMmio64Mib(mib));
    }
    changes
}

fn width_change(assembled: &Assembled, bits: PhysBits, bounds: Bounds, refused: bool) -> Option<Change> {
    let knows = |since: Version| assembled.libvirt.is_none_or(|version| version >= since);
    match assembled.cpu.control {
        WidthControl::Fixed => None,
        WidthControl::Own if knows(MAXPHYSADDR_SINCE) => {
            Some(Change::SetMaxPhysAddr(MaxPhysAddrValue::Emulate(bits)))
        }
        WidthControl::Own | WidthControl::OwnByGlobal => {
            Some(Change::SetCpuGlobal(CpuGlobal::PhysBits(bits)))
        }
        // The element that is refused has to go; a `-global` beside it would not help.
        WidthControl::HostLimited if refused && assembled.cpu.maxphysaddr.is_some() => {
            let limit = knows(LIMIT_SINCE).then_some(bits);
            let is_hosts = bits == bounds.highest && bounds.by == Bound::Host;
            (limit.is_some() || is_hosts)
                .then_some(Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { limit }))
        }
        WidthControl::HostLimited if bits == bounds.highest && bounds.by == Bound::Host => {
            // The host's own width: a limit that stands in the way goes.
            let limited = assembled.cpu.maxphysaddr.is_some_and(|width| width.limit.is_some());
            if limited && knows(LIMIT_SINCE) {
                Some(Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { limit: Some(bits) }))
            } else {
                Some(Change::SetCpuGlobal(CpuGlobal::HostPhysBitsLimit(bits)))
            }
        }
        // An unknown version may be one that drops `limit` in silence: the -global works with all of them.
        WidthControl::HostLimited if assembled.libvirt.is_some_and(|version| version >= LIMIT_SINCE) => {
            Some(Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { limit: Some(bits) }))
        }
        WidthControl::HostLimited => Some(Change::SetCpuGlobal(CpuGlobal::HostPhysBitsLimit(bits))),
    }
}

/// Whether the firmware is OVMF; `X-PciMmio64Mb` means nothing to others.
pub(super) fn is_ovmf(guest: &Guest) -> bool {
    matches!(guest.firmware, Firmware::Ovmf(_))
}
