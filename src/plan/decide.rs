//! The decision: the smallest width with which every device is placed, and `X-PciMmio64Mb` only where no width
//! that may be used is enough.
//!
//! Candidates are tried on the predictor itself, never by a formula: summing BARs is wrong, and so is "more bits".
//! Order: the definition as it stands; then, with the window the firmware makes by itself, widths from the
//! present one upwards; then the same with 1 GiB pages required; then with a window of our own. First that places
//! everything wins. If none does, the best one (most GPUs, then most devices, then the least change) is planned and
//! the bound that bites is named.

use super::Bits;
use super::judge::judge;
use super::policy::{FwCfg, Settings};
use crate::guest::{Assembled, WidthControl};
use crate::layout::{self, Firmware, Guest, Layout, Outcome};
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

/// The guest as a candidate would make it.
pub(super) fn with(guest: &Guest, candidate: &Candidate) -> Guest {
    let mut guest = guest.clone();
    guest.cpu.phys_bits = candidate.phys_bits;
    guest.cpu.gib_pages |= candidate.require_gib_pages;
    if let Some(mib) = candidate.mmio64_mib {
        guest.mmio64_mb = Some(mib.to_string());
    }
    guest
}

/// Lays a candidate out and counts. `limit` is the first address that host and IOMMU cannot reach.
pub(super) fn try_out(assembled: &Assembled, guest: &Guest, candidate: Candidate, limit: u64) -> Trial {
    let layout = layout::lay_out(&with(guest, &candidate));
    let judged = judge(assembled, &layout, limit);
    Trial {
        candidate,
        gpus_placed: judged.gpus_placed,
        devices_placed: judged.devices_placed,
        fits: judged.everything,
        layout,
    }
}

/// Searches. `guest` is the one to make room for (headroom included).
pub(super) fn decide(
    assembled: &Assembled,
    guest: &Guest,
    bounds: Bounds,
    settings: Settings,
    present: Candidate,
    limit: u64,
) -> Decision {
    let mut search = Search { assembled, guest, limit, best: None };
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
                let trial = search.try_one(Candidate { phys_bits, require_gib_pages, mmio64_mib: None });
                if tried.last().is_none_or(|(bits, _)| *bits < phys_bits) {
                    tried.push((phys_bits, trial.gpus_placed));
                }
                if trial.fits {
                    return Decision { best: trial, tried };
                }
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
                        return Decision { best: trial, tried };
                    }
                }
            }
        }
    }
    let best = search.best.unwrap_or_else(|| try_out(assembled, guest, present, limit));
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

struct Search<'a> {
    assembled: &'a Assembled,
    guest: &'a Guest,
    limit: u64,
    best: Option<Trial>,
}

impl Search<'_> {
    /// Tries a candidate and remembers it if it is better than all before.
    fn try_one(&mut self, candidate: Candidate) -> Trial {
        let trial = try_out(self.assembled, self.guest, candidate, self.limit);
        let score = |t: &Trial| (t.fits, t.layout.outcome == Outcome::Boots, t.gpus_placed, t.devices_placed);
        if self.best.as_ref().is_none_or(|best| score(&trial) > score(best)) {
            self.best = Some(trial.clone());
        }
        trial
    }

    /// Bytes that the 64-bit BARs need, as far as the trials showed.
    fn needed(&self) -> u64 {
        let window = self.best.as_ref().and_then(|best| best.layout.window);
        window.map_or(0, |window| window.needed.get())
    }
}
