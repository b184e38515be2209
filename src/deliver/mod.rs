//! How a plan reaches a guest: libvirt's hook decides at `prepare`, the emulator shim makes it true in the argv of
//! the same start.
//!
//! libvirt ignores what a hook prints at `prepare` (measured, libvirt 9.0), so the two talk through a file: one
//! plan a guest in `/run/barfit/plans`, written by root, bound to the guest's UUID, this boot and the last minutes.
//! Whatever goes wrong here, the guest is no worse off than without barfit; only `strict` refuses a start.

pub mod apply;
mod command;
pub mod confine;
mod daemon;
mod dmesg;
pub mod doctor;
mod fault;
mod firmware_cache;
mod glance;
pub mod here;
pub mod hook;
pub mod install;
pub mod journal;
mod place;
pub mod plan_file;
pub mod shim;
pub mod starts;
pub mod status;
