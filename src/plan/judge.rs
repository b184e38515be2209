//! Reading a layout: which devices are placed, and what that means for the guest.

use crate::guest::Assembled;
use crate::layout::{FunctionId, Layout, Outcome, PlacedBar};

/// Index of the expansion ROM; drivers do without it.
const ROM_INDEX: u8 = 6;

/// What a layout means for the devices.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    /// GPUs placed.
    pub gpus_placed: usize,
    /// Devices placed, passed-through and emulated.
    pub devices_placed: usize,
    /// Every device is placed and the guest boots.
    pub everything: bool,
}

/// Counts what is placed. `limit` is the first address that host and IOMMU cannot reach.
pub(super) fn judge(assembled: &Assembled, layout: &Layout, limit: u64) -> Judged {
    if layout.outcome != Outcome::Boots {
        return Judged { gpus_placed: 0, devices_placed: 0, everything: false };
    }
    let mut judged = Judged { gpus_placed: 0, devices_placed: 0, everything: true };
    for bars in layout.bars.chunk_by(|a, b| a.function == b.function) {
        let id = bars[0].function;
        if !assembled.is_device(id) {
            continue;
        }
        if bars_are_placed(bars, limit) {
            judged.devices_placed += 1;
            judged.gpus_placed += usize::from(assembled.is_gpu(id));
        } else {
            judged.everything = false;
        }
    }
    judged
}

/// Whether one function is placed: every BAR but the expansion ROM has an address that the guest, the host and the
/// IOMMU reach. A function without BARs is.
pub(super) fn is_placed(layout: &Layout, id: FunctionId, limit: u64) -> bool {
    layout.outcome == Outcome::Boots
        && layout
            .bars
            .chunk_by(|a, b| a.function == b.function)
            .filter(|bars| bars[0].function == id)
            .all(|bars| bars_are_placed(bars, limit))
}

fn bars_are_placed(bars: &[PlacedBar], limit: u64) -> bool {
    bars.iter().filter(|placed| placed.bar.index != ROM_INDEX).all(|placed| {
        let end = placed.address.and_then(|a| a.get().checked_add(placed.bar.size.get()));
        placed.reachable && end.is_some_and(|end| end <= limit)
    })
}
