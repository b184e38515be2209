//! The decision: the smallest width with which every device is placed, and `X-PciMmio64Mb` only where no width
//! that may be used is enough.
//!
//! Candidates are tried on the predictor itself, never by a formula: summing BARs is wrong, and so is "more bits".
//! Order: the definition as it stands; then, with the window the firmware makes by itself, widths from the
//! present one upwards; then the same with 1 GiB pages required; then with a window of our own. First that places
//! everything wins. If none does, the best one (most GPUs, then most devices, then the least change) is planned and
//! the bound that bites is named.

use std::borrow::Cow;

use super::Bits;
use super::judge::{Devices, judge};
use super::policy::{FwCfg, Settings};
use crate::guest::{Assembled, WidthControl};
use crate::layout::{Firmware, Guest, GuestCpu, Layout, Outcome, Predictor};
use crate::units::{GIB, PhysBits};

/// What may be changed about a guest.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The guest's width.
    pub phys_bits: PhysBits,
    /// `pdpe1gb` is required.
    pub require_gib_pages: bool,
    /// `X-PciMmio64Mb` becomes this.
    pub mmio64_mib: Option<u32>,
}

/// How a guest fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trial {
    /// What was tried.
    pub candidate: Candidate,
    /// Where everything ends up.
    pub layout: Layout,
    /// GPUs placed.
    pub gpus_placed: usize,
    /// Devices placed, passed-through and emulated.
    pub devices_placed: usize,
    /// Everything is placed.
    pub fits: bool,
}

/// Limits of the width, and which one bites.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Smallest width to try.
    pub lowest: PhysBits,
    /// Largest width that may be used.
    pub highest: PhysBits,
    /// What sets `highest`.
    pub by: Bound,
}

/// What bounds the width.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// The host's CPU.
    Host,
    /// The IOMMU.
    Iommu,
    /// The host's width is not known; this is an assumption.
    Assumed,
    /// QEMU.
    Qemu,
    /// A 32-bit CPU model.
    Model,
}

/// The outcome of the search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// The best trial; its candidate is what the plan makes true.
    pub best: Trial,
    /// Every width tried with the firmware's own window, in ascending order: what an explanation shows.
    pub tried: Vec<(PhysBits, usize)>,
}

impl Candidate {
    /// The guest's CPU as the candidate would make it.
    fn cpu(&self, guest: &Guest) -> GuestCpu {
        let gib_pages = guest.cpu.gib_pages || self.require_gib_pages;
        GuestCpu { phys_bits: self.phys_bits, gib_pages, ..guest.cpu }
    }

    /// The guest's `X-PciMmio64Mb` as the candidate would make it.
    fn mmio64_mb(&self, guest: &Guest) -> Option<String> {
        self.mmio64_mib.map(|mib| mib.to_string()).or_else(|| guest.mmio64_mb.clone())
    }

    /// The guest as the candidate would make it.
    pub(super) fn of(&self, guest: &Guest) -> Guest {
        Guest { cpu: self.cpu(guest), mmio64_mb: self.mmio64_mb(guest), ..guest.clone() }
    }
}

/// A guest on which candidates are tried out.
pub(super) struct Rig<'a> {
    assembled: &'a Assembled,
    guest: &'a Guest,
    /// First address that host and IOMMU cannot reach.
    limit: u64,
    devices: Devices,
    predictor: Predictor<'a>,
}

impl<'a> Rig<'a> {
    pub(super) fn new(assembled: &'a Assembled, guest: &'a Guest, limit: u64) -> Rig<'a> {
        let (devices, predictor) = (Devices::new(assembled), Predictor::new(guest));
        Rig { assembled, guest, limit, devices, predictor }
    }

    /// Lays a candidate out and counts.
    pub(super) fn try_out(&mut self, candidate: Candidate) -> Trial {
        let layout = self.predictor.lay_out(candidate.cpu(self.guest), candidate.mmio64_mb(self.guest));
        let judged = judge(&self.devices, &layout, self.limit);
        Trial {
            candidate,
            gpus_placed: judged.gpus_placed,
            devices_placed: judged.devices_placed,
            fits: judged.everything,
            layout,
        }
    }
}

/// Searches. `rig` holds the guest to make room for (headroom included), `now` is how it fares as it stands.
pub(super) fn decide(rig: &mut Rig<'_>, bounds: Bounds, settings: Settings, now: &Trial) -> Decision {
    let (assembled, guest, present) = (rig.assembled, rig.guest, now.candidate);
    let mut search = Search { rig, now, best: None };
    let mut tried = Vec::new();
    let widths = widths(bounds, settings, present, assembled.cpu.control);
    let ovmf = matches!(guest.firmware, Firmware::Ovmf(_));
    let mut page_options = vec![false];
    if ovmf && !guest.cpu.gib_pages && assembled.cpu.gib_pages_available {
        page_options.push(true);
    }
    let windows_allowed = ovmf && settings.fw_cfg != FwCfg::Never;
    if !(windows_allowed && settings.fw_cfg == FwCfg::Always) {
        for &require_gib_pages in &page_options {
            for &phys_bits in &widths {
                let candidate = Candidate { phys_bits, require_gib_pages, mmio64_mib: None };
                let trial = search.try_one(candidate);
                if tried.last().is_none_or(|(bits, _)| *bits < phys_bits) {
                    tried.push((phys_bits, trial.gpus_placed));
                }
                if trial.fits {
                    return Decision { best: trial.into_owned(), tried };
                }
                search.remember(trial);
            }
        }
    }
    if windows_allowed {
        let needed = search.needed();
        for &require_gib_pages in &page_options {
            for &phys_bits in &widths {
                for mib in window_sizes(needed, phys_bits) {
                    let candidate = Candidate { phys_bits, require_gib_pages, mmio64_mib: Some(mib) };
                    let trial = search.try_one(candidate);
                    if trial.fits {
                        return Decision { best: trial.into_owned(), tried };
                    }
                    search.remember(trial);
                }
            }
        }
    }
    let best = search.best.unwrap_or(Cow::Borrowed(now)).into_owned();
    Decision { best, tried }
}

/// The widths to try, in order.
fn widths(bounds: Bounds, settings: Settings, present: Candidate, control: WidthControl) -> Vec<PhysBits> {
    let range = |low: PhysBits, high: PhysBits| -> Vec<PhysBits> {
        (low.get()..=high.get()).filter_map(|bits| PhysBits::new(bits.into())).collect()
    };
    match (control, settings.bits) {
        (WidthControl::Fixed, _) => vec![present.phys_bits],
        (_, Bits::Fixed(bits)) => vec![bits.min(bounds.highest)],
        (_, Bits::Host) => vec![bounds.highest],
        // The width is the host's unless limited; no limit is the lesser change, so wider comes first.
        (WidthControl::HostLimited, Bits::Smallest) => {
            let mut widths = range(bounds.lowest, bounds.highest);
            widths.reverse();
            widths
        }
        (WidthControl::Own | WidthControl::OwnByGlobal, Bits::Smallest) => {
            range(bounds.lowest, bounds.highest)
        }
    }
}

/// Window sizes worth trying for `needed` bytes, in MiB, ascending: powers of two and one and a half times those,
/// from what is needed up to the firmware's cap of 16 TiB and what the width holds.
fn window_sizes(needed: u64, width: PhysBits) -> impl Iterator<Item = u32> {
    const CAP_MIB: u64 = 1 << 24;
    let needed_mib = needed.max(32 * GIB).div_ceil(1 << 20);
    let most = CAP_MIB.min(width.limit() >> 20);
    (15..=24u32)
        .flat_map(|shift| [1u64 << shift, 3u64 << (shift - 1)])
        .filter(move |mib| *mib >= needed_mib && *mib <= most)
        .filter_map(|mib| u32::try_from(mib).ok())
}

struct Search<'a, 'g> {
    rig: &'a mut Rig<'g>,
    /// The guest as it stands.
    now: &'a Trial,
    best: Option<Cow<'a, Trial>>,
}

impl<'a> Search<'a, '_> {
    /// Tries a candidate, unless that is what stands.
    fn try_one(&mut self, candidate: Candidate) -> Cow<'a, Trial> {
        if candidate == self.now.candidate {
            return Cow::Borrowed(self.now);
        }
        Cow::Owned(self.rig.try_out(candidate))
    }

    /// Keeps a trial if it is better than all before.
    fn remember(&mut self, trial: Cow<'a, Trial>) {
        let score = |t: &Trial| (t.fits, t.layout.outcome == Outcome::Boots, t.gpus_placed, t.devices_placed);
        if self.best.as_ref().is_none_or(|best| score(&trial) > score(best)) {
            self.best = Some(trial);
        }
    }

    /// Bytes that the 64-bit BARs need, as far as the trials showed.
    fn needed(&self) -> u64 {
        let window = self.best.as_ref().and_then(|best| best.layout.window);
        window.map_or(0, |window| window.needed.get())
    }
}
