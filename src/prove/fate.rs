//! What became of a device's BARs in a proof, by the stand-ins that were booted for them; counted as `check` counts.

use super::observe::Seen;
use super::proof::{Proof, used_by_linux};
use crate::guest::HostDevice;
use crate::plan::Placement;
use crate::units::{Addr, Bar};

/// A device of the domain and what its stand-ins got.
#[derive(Clone, Debug)]
pub(super) struct Fate<'a> {
    pub(super) device: &'a HostDevice,
    /// By its largest BAR.
    pub(super) placement: Placement,
    /// Those that were stood for.
    pub(super) bars: Vec<BarFate<'a>>,
}

/// One BAR.
#[derive(Copy, Clone, Debug)]
pub(super) struct BarFate<'a> {
    pub(super) bar: &'a Bar,
    /// What the firmware gave it.
    pub(super) address: Option<Addr>,
    /// Whether the guest's CPU reaches that address; false where there is none.
    pub(super) reachable: bool,
    /// Linux's word, where one was booted.
    pub(super) used: Option<bool>,
}

impl BarFate<'_> {
    /// Linux's word, else the firmware's.
    pub(super) fn usable(&self) -> bool {
        self.used.unwrap_or(self.reachable)
    }
}

impl Proof {
    /// What became of these devices.
    pub(super) fn fates<'a>(&self, devices: &'a [HostDevice]) -> Vec<Fate<'a>> {
        devices.iter().map(|device| self.fate(device)).collect()
    }

    fn fate<'a>(&self, device: &'a HostDevice) -> Fate<'a> {
        let stood = self.stand.stood.iter().find(|stood| stood.original == device.id);
        let mut bars = Vec::new();
        for (was, function, index) in stood.map(|stood| stood.registers.as_slice()).unwrap_or_default() {
            let Some(bar) = device.bars.iter().find(|bar| bar.index == *was) else { continue };
            let seen = match &self.observed.seen {
                Seen::Placed(bars) => bars.iter().find(|b| b.function == *function && b.bar.index == *index),
                _ => None,
            };
            bars.push(BarFate {
                bar,
                address: seen.and_then(|seen| seen.address),
                reachable: seen.is_some_and(|seen| seen.address.is_some() && seen.reachable),
                used: used_by_linux(&self.observed, *function, *index),
            });
        }
        let largest = bars.iter().max_by_key(|fate| fate.bar.size);
        let placement = match largest {
            _ if bars.iter().all(BarFate::usable) => Placement::Placed,
            Some(fate) if fate.usable() => Placement::Partly,
            _ => Placement::Unplaced,
        };
        Fate { device, placement, bars }
    }
}
