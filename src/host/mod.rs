//! What the machine has: CPU width, IOMMU width, versions, firmware files, PCI functions with their BARs.
//!
//! The facts are plain data ([`HostFacts`], the file format `barfit/host/1`); reading this machine and reading a
//! file give the same type, so that an answer can be had anywhere. Every field but `schema` may be missing:
//! missing means unknown, never zero.

mod facts;
mod json;
mod version;

pub use facts::{FirmwareFile, FirmwareKind, HostCpu, HostFacts, PciFunction, Program, SCHEMA};
pub use json::HostFileError;
pub use version::Version;
