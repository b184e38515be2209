//! The file format `barfit/host/1`: what `barfit host` prints and `--host` reads.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::json;
use super::version::Version;
use crate::units::{Bar, PciAddress};

/// The value of `schema`.
pub const SCHEMA: &str = "barfit/host/1";

/// Facts of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFacts {
    /// Always [`SCHEMA`].
    #[serde(deserialize_with = "json::schema")]
    pub schema: String,
    /// The CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<HostCpu>,
    /// Width of the narrowest IOMMU, 30 to 64 bits.
    #[serde(default, deserialize_with = "json::iommu_bits", skip_serializing_if = "Option::is_none")]
    pub iommu_bits: Option<u8>,
    /// QEMU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qemu: Option<Program>,
    /// libvirt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub libvirt: Option<Program>,
    /// Firmware files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub firmware: Vec<FirmwareFile>,
    /// PCI functions.
    #[serde(default, deserialize_with = "json::functions", skip_serializing_if = "Vec::is_empty")]
    pub pci: Vec<PciFunction>,
}

/// The host's CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostCpu {
    /// CPUID vendor string: `GenuineIntel`, `AuthenticAMD`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Physical address bits, 32 to 52, as the kernel sees them (memory encryption already subtracted).
    #[serde(default, deserialize_with = "json::cpu_bits", skip_serializing_if = "Option::is_none")]
    pub phys_bits: Option<u8>,
    /// 1 GiB pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pdpe1gb: Option<bool>,
    /// 5-level paging.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub la57: Option<bool>,
}

/// A program's version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// `8.2.2`.
    #[serde(deserialize_with = "json::version")]
    pub version: String,
}

impl Program {
    /// The version as a number to compare with; `None` only where the text is not one.
    pub fn number(&self) -> Option<Version> {
        self.version.parse().ok()
    }
}

/// Kinds of firmware.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FirmwareKind {
    /// edk2's OvmfPkg.
    Ovmf,
    /// SeaBIOS.
    Seabios,
}

/// One firmware file and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirmwareFile {
    /// Where it is.
    pub path: PathBuf,
    /// Which firmware.
    pub kind: FirmwareKind,
    /// OVMF: the edk2-stable tag whose rules it follows, `202211`.
    #[serde(default, deserialize_with = "json::era", skip_serializing_if = "Option::is_none")]
    pub era: Option<String>,
    /// OVMF: `X-PciMmio64Mb` is an exact size (own or backported) rather than a minimum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fw_cfg_override: Option<bool>,
    /// SeaBIOS: version, `1.16.2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Built with 1 GiB page tables; AmdSev builds are not. Missing means yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gib_page_tables: Option<bool>,
    /// How the era was found: `package ovmf 2022.11-6+deb12u2`, `markers in the image`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

/// One PCI function of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PciFunction {
    /// Host address.
    pub address: PciAddress,
    /// Vendor id, four hex digits, lower case.
    #[serde(deserialize_with = "json::pci_id")]
    pub vendor: String,
    /// Device id, four hex digits, lower case.
    #[serde(deserialize_with = "json::pci_id")]
    pub device: String,
    /// Class code, six hex digits, lower case: `030200`.
    #[serde(deserialize_with = "json::pci_class")]
    pub class: String,
    /// IOMMU group number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommu_group: Option<u32>,
    /// NUMA node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// BARs; missing (not empty) means unknown, and the catalogue answers.
    #[serde(default, deserialize_with = "json::bars", skip_serializing_if = "Option::is_none")]
    pub bars: Option<Vec<Bar>>,
}
