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
#[cfg(test)]
mod pack_tests;
mod ram;
mod seabios;
#[cfg(test)]
mod tests;
mod types;
mod width;
mod window;

pub use builtin::built_in;
pub use eras::OvmfChange;
pub use ram::{ram_map, refuses};
pub use seabios::{SeaBiosClamp, SeaBiosPadding, SeaBiosRules};
pub use types::*;

/// Where the guest's firmware puts every BAR, or why it does not get that far.
pub fn lay_out(guest: &Guest) -> Layout {
    match &guest.firmware {
        Firmware::Ovmf(rules) => ovmf::lay_out(guest, rules),
        Firmware::SeaBios(rules) => seabios::lay_out(guest, rules),
    }
}
