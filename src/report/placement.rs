//! Where each passed-through device ended up: the answer's devices joined with a layout.

use crate::guest::HostDevice;
use crate::layout::{Layout, Outcome, PlacedBar};
use crate::plan::Answer;
use crate::units::{Addr, Bar};

/// A passed-through device and the addresses of its BARs.
pub(super) struct PlacedDevice<'a> {
    pub(super) device: &'a HostDevice,
    pub(super) placed: bool,
    /// Every BAR but the expansion ROM, which gets no lasting address.
    pub(super) registers: Vec<Register>,
}

/// A BAR and what became of it.
pub(super) struct Register {
    pub(super) bar: Bar,
    pub(super) address: Option<Addr>,
    /// It has an address that the guest, the host and the IOMMU reach.
    pub(super) usable: bool,
}

/// The devices in the order of the domain. Without a layout, and in a guest that does not come up, nothing is placed.
pub(super) fn placements<'a>(answer: &'a Answer, layout: Option<&Layout>) -> Vec<PlacedDevice<'a>> {
    let boots = layout.filter(|layout| layout.outcome == Outcome::Boots);
    let one = |device: &'a HostDevice| {
        let register = |bar: &Bar| {
            let same = |placed: &&PlacedBar| placed.function == device.id && placed.bar.index == bar.index;
            let placed = boots.and_then(|layout| layout.bars.iter().find(same));
            let usable = placed.is_some_and(|placed| is_usable(answer, placed));
            Register { bar: *bar, address: placed.and_then(|placed| placed.address), usable }
        };
        PlacedDevice {
            device,
            placed: boots.is_some_and(|layout| answer.is_placed(layout, device.id)),
            registers: device.bars.iter().filter(|bar| !bar.is_rom()).map(register).collect(),
        }
    };
    answer.assembled.devices.iter().map(one).collect()
}

/// Whether a BAR has an address that the guest, the host and the IOMMU reach.
pub(super) fn is_usable(answer: &Answer, placed: &PlacedBar) -> bool {
    let end = placed.address.and_then(|address| address.get().checked_add(placed.bar.size.get()));
    placed.reachable && end.is_some_and(|end| end <= answer.limit)
}
