//! Reading a layout: which devices are placed, and what that means for the guest.

use crate::guest::Assembled;
use crate::layout::{FunctionId, Layout, Outcome, PlacedBar};

/// How a device fares.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// Every BAR but the expansion ROM has an address that the guest, the host and the IOMMU reach.
    Placed,
    /// The largest BAR has, another has not: the guest sees the device, its driver may not take it. It happens where
    /// 2^phys-bits cuts through a port's window (SeaBIOS); the field counts such a GPU among those it has.
    Partly,
    /// The largest BAR has none.
    Unplaced,
}

/// What a layout means for the devices.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    /// GPUs whose largest BAR is placed.
    pub gpus_placed: usize,
    /// Devices of which every BAR is placed, passed-through and emulated.
    pub devices_placed: usize,
    /// Every device is placed and the guest boots.
    pub everything: bool,
}

/// Which functions of a guest are devices, rather than bridges or built into the machine, and whether GPUs.
pub(super) struct Devices(Vec<(FunctionId, bool)>);

impl Devices {
    pub(super) fn new(assembled: &Assembled) -> Devices {
        let passed = assembled.devices.iter().map(|device| (device.id, device.gpu));
        let mut devices: Vec<_> =
            passed.chain(assembled.emulated.iter().map(|(id, _)| (*id, false))).collect();
        devices.sort_unstable();
        Devices(devices)
    }

    /// Whether a device is a GPU; `None` for what is no device.
    pub(super) fn is_gpu(&self, id: FunctionId) -> Option<bool> {
        self.0.binary_search_by_key(&id, |(id, _)| *id).ok().map(|at| self.0[at].1)
    }
}

/// The BARs of a layout by function.
pub(super) struct ByFunction<'a>(Vec<&'a [PlacedBar]>);

impl<'a> ByFunction<'a> {
    pub(super) fn new(layout: &'a Layout) -> ByFunction<'a> {
        let mut functions: Vec<_> = layout.bars.chunk_by(|a, b| a.function == b.function).collect();
        functions.sort_unstable_by_key(|bars| bars[0].function);
        ByFunction(functions)
    }

    /// The BARs of a function, expansion ROM excluded.
    pub(super) fn bars(&self, id: FunctionId) -> &'a [PlacedBar] {
        let found = self.0.binary_search_by_key(&id, |bars| bars[0].function);
        found.map_or(&[], |at| self.0[at])
    }
}

/// Counts what is placed. `limit` is the first address that host and IOMMU cannot reach.
pub(super) fn judge(devices: &Devices, layout: &Layout, limit: u64) -> Judged {
    if layout.outcome != Outcome::Boots {
        return Judged { gpus_placed: 0, devices_placed: 0, everything: false };
    }
    let mut judged = Judged { gpus_placed: 0, devices_placed: 0, everything: true };
    for bars in layout.bars.chunk_by(|a, b| a.function == b.function) {
        let Some(is_gpu) = devices.is_gpu(bars[0].function) else { continue };
        let placement = of_bars(bars, limit);
        judged.devices_placed += usize::from(placement == Placement::Placed);
        judged.gpus_placed += usize::from(placement != Placement::Unplaced && is_gpu);
        judged.everything &= placement == Placement::Placed;
    }
    judged
}

/// How one function fares. A function without BARs is placed.
pub(super) fn placement(layout: &Layout, id: FunctionId, limit: u64) -> Placement {
    if layout.outcome != Outcome::Boots {
        return Placement::Unplaced;
    }
    let mut functions = layout.bars.chunk_by(|a, b| a.function == b.function);
    functions.find(|bars| bars[0].function == id).map_or(Placement::Placed, |bars| of_bars(bars, limit))
}

/// How a function with these BARs fares in a guest that boots.
pub(super) fn of_bars(bars: &[PlacedBar], limit: u64) -> Placement {
    let usable = |placed: &PlacedBar| {
        let end = placed.address.and_then(|a| a.get().checked_add(placed.bar.size.get()));
        placed.reachable && end.is_some_and(|end| end <= limit)
    };
    let needed = || bars.iter().filter(|placed| !placed.bar.is_rom());
    if needed().all(usable) {
        Placement::Placed
    } else if needed().max_by_key(|placed| placed.bar.size).is_some_and(usable) {
        Placement::Partly
    } else {
        Placement::Unplaced
    }
}
