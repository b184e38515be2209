//! The decision: the smallest width with which every device is placed, and `X-PciMmio64Mb` only where no width
//! that may be used is enough.
//!
//! Candidates are tried on the predictor itself, never by a formula: summing BARs is wrong, and so is "more bits".
//! Order: the definition as it stands; then, with the window the firmware makes by itself, widths from the
//! present one upwards; then the same with 1 GiB pages required; then with a window of our own. First that places
//! everything wins. If none does, the best one (most GPUs, then most devices, then the least change) is planned and
//! the bound that bites is named. What has less space than the BARs alone take cannot win, and is laid out only where
//! nothing else does.

use std::borrow::Cow;

use super::Bits;
use super::judge::{Devices, judge};
use super::policy::{FwCfg, Settings};
use crate::guest::{Assembled, WidthControl};
use crate::layout::{Demand, Firmware, Guest, GuestCpu, Layout, Outcome, Predictor};
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
    /// Every width tried with the firmware's own window, in ascending order, and how many GPUs are placed: what an
    /// explanation shows. `None`: not all, for lack of space; how many was of no interest.
    pub tried: Vec<(PhysBits, Option<usize>)>,
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
        guest.with(self.cpu(guest), self.mmio64_mb(guest))
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
    let demand = Demand::new(&guest.bus, |id| rig.devices.is_gpu(id).is_some());
    let mut search = Search { rig, now, demand, best: None };
    let mut tried = Vec::new();
    let widths = widths(bounds, settings, present, assembled.cpu.control);
    let ovmf = matches!(guest.firmware, Firmware::Ovmf(_));
    let mut page_options = vec![false];
    if ovmf && !guest.cpu.gib_pages && assembled.cpu.gib_pages_available {
        page_options.push(true);
    }
    let options = || page_options.iter().flat_map(|&pages| widths.iter().map(move |&bits| (bits, pages)));
    let windows_allowed = ovmf && settings.fw_cfg != FwCfg::Never;
    if !(windows_allowed && settings.fw_cfg == FwCfg::Always) {
        let candidates: Vec<Candidate> = options()
            .map(|(phys_bits, require_gib_pages)| Candidate {
                phys_bits,
                require_gib_pages,
                mmio64_mib: None,
            })
            .collect();
        let found = search.first_that_fits(&candidates, |candidate, trial| {
            let bits = candidate.phys_bits;
            if tried.last().is_none_or(|(last, _)| *last < bits) {
                tried.push((bits, trial.map(|trial| trial.gpus_placed)));
            }
        });
        if let Some(best) = found {
            return Decision { best: best.into_owned(), tried };
        }
    }
    if windows_allowed {
        let needed = search.needed();
        let with_window = |(phys_bits, require_gib_pages)| {
            let candidate = move |mib| Candidate { phys_bits, require_gib_pages, mmio64_mib: Some(mib) };
            window_sizes(needed, phys_bits).map(candidate)
        };
        let candidates: Vec<Candidate> = options().flat_map(with_window).collect();
        if let Some(best) = search.first_that_fits(&candidates, |_, _| {}) {
            return Decision { best: best.into_owned(), tried };
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
    /// What the devices ask for.
    demand: Demand,
    /// The best of those that do not fit.
    best: Option<Cow<'a, Trial>>,
}

impl<'a> Search<'a, '_> {
    /// The first that places everything. `tell` hears of each in their order up to that one, and where none does of all,
    /// how it fared; before that not of those without space.
    fn first_that_fits(
        &mut self,
        candidates: &[Candidate],
        mut tell: impl FnMut(&Candidate, Option<&Trial>),
    ) -> Option<Cow<'a, Trial>> {
        let mut trials = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let trial = (!self.is_hopeless(candidate)).then(|| self.try_one(*candidate));
            let fits = trial.as_ref().is_some_and(|trial| trial.fits);
            trials.push(trial);
            if fits {
                candidates
                    .iter()
                    .zip(&trials)
                    .for_each(|(candidate, trial)| tell(candidate, trial.as_deref()));
                return trials.pop().flatten();
            }
        }
        for (candidate, trial) in candidates.iter().zip(trials) {
            let trial = trial.unwrap_or_else(|| self.try_one(*candidate));
            tell(candidate, Some(&trial));
            self.remember(trial);
        }
        None
    }

    /// Whether the BARs alone are larger than what the firmware would have for them. Of what stands it is known how it
    /// fares.
    fn is_hopeless(&self, candidate: &Candidate) -> bool {
        let guest = self.rig.guest;
        let room = || self.rig.predictor.room(candidate.cpu(guest), candidate.mmio64_mb(guest));
        *candidate != self.now.candidate && !room().may_hold(self.demand)
    }

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
