//! Where the firmware puts every BAR of a guest: pure arithmetic, no I/O.
//!
//! Input is a [`Guest`] (numbers only: RAM, CPU width, firmware rules, PCI tree with BARs), output a
//! [`Layout`]. Firmware eras and QEMU machine versions are data ([`OvmfRules`], [`SeaBiosRules`],
//! [`MachineRules`]), not scattered conditions.

mod types;

pub use types::*;
