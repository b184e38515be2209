//! Where the firmware puts every BAR of a guest: pure arithmetic, no I/O.
//!
//! Input is a [`Guest`] (numbers only: RAM, CPU width, firmware rules, PCI tree with BARs), output a
//! [`Layout`]. Firmware eras and QEMU machine versions are data ([`OvmfRules`], [`SeaBiosRules`],
//! [`MachineRules`]), not scattered conditions.

mod builtin;
mod eras;
mod host_bridge;
mod linux;
mod ovmf;
#[cfg(test)]
mod ovmf_tests;
mod pack;
mod ram;
mod room;
mod seabios;
#[cfg(test)]
mod tests;
mod types;
mod width;
mod window;

pub use builtin::built_in;
pub use eras::OvmfChange;
pub use ram::{ram_map, refuses};
pub use room::{Demand, Room};
pub use seabios::{SeaBiosClamp, SeaBiosPadding, SeaBiosRules};
pub use types::*;

/// Where the guest's firmware puts every BAR, or why it does not get that far.
pub fn lay_out(guest: &Guest) -> Layout {
    Predictor::new(guest).lay_out(guest.cpu, guest.mmio64_mb.clone())
}

/// Lays out one guest time and again, each time with another CPU or another `X-PciMmio64Mb`: what does not depend on
/// those is read only once.
#[derive(Clone, Debug)]
pub struct Predictor<'a> {
    guest: &'a Guest,
    tree: Option<pack::Tree<'a>>,
}

impl<'a> Predictor<'a> {
    /// Of this guest.
    pub fn new(guest: &'a Guest) -> Predictor<'a> {
        Predictor { guest, tree: None }
    }

    /// As [`lay_out`], with this in the place of the guest's own [`Guest::cpu`] and [`Guest::mmio64_mb`].
    pub fn lay_out(&mut self, cpu: GuestCpu, mmio64_mb: Option<String>) -> Layout {
        let guest = self.guest.with(cpu, mmio64_mb);
        match &guest.firmware {
            Firmware::Ovmf(rules) => {
                let tree = self.tree.get_or_insert_with(|| pack::Tree::new(&self.guest.bus));
                ovmf::lay_out(&guest, rules, tree)
            }
            Firmware::SeaBios(rules) => seabios::lay_out(&guest, rules),
        }
    }

    /// The space that there is for BARs, with this in the place of the guest's own.
    pub fn room(&self, cpu: GuestCpu, mmio64_mb: Option<String>) -> Room {
        let guest = self.guest.with(cpu, mmio64_mb);
        match &guest.firmware {
            Firmware::Ovmf(rules) => ovmf::room(&guest, rules),
            Firmware::SeaBios(_) => {
                let all = guest.cpu.phys_bits.limit();
                Room { all, above_4g: all }
            }
        }
    }
}
