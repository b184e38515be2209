//! Findings: checked statements about a guest, each with a level and a stable code.
//!
//! Codes are a contract: scripts match them, so one is never renamed or reused. The text is for people: it names
//! the device and the range, in hex and in GiB, and says what to do.

use std::fmt;

use serde::{Serialize, Serializer};

/// How much a finding matters.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The guest does not start, or loses a device.
    Error,
    /// The answer rests on something uncertain, or a setting does not do what it says.
    Warning,
    /// A step of the reasoning.
    Note,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        })
    }
}

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// Which statement.
    pub code: Code,
    /// The statement, for people.
    pub text: String,
}

impl Finding {
    /// An error.
    pub fn error(code: Code, text: impl Into<String>) -> Finding {
        Finding { level: Level::Error, code, text: text.into() }
    }

    /// A warning.
    pub fn warning(code: Code, text: impl Into<String>) -> Finding {
        Finding { level: Level::Warning, code, text: text.into() }
    }

    /// A note.
    pub fn note(code: Code, text: impl Into<String>) -> Finding {
        Finding { level: Level::Note, code, text: text.into() }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// Stable codes of findings.
        #[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// Every code, for documentation and tests.
            pub const ALL: &[Code] = &[$(Code::$variant,)*];

            /// The code as it is printed.
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }
        }
    };
}

codes! {
    /// A GPU gets no address, or one the guest cannot use.
    GpuUnplaced = "GPU_UNPLACED",
    /// A GPU's largest BAR is placed, another of its BARs is not.
    GpuPartlyPlaced = "GPU_PARTLY_PLACED",
    /// Another device gets no address.
    DeviceUnplaced = "DEVICE_UNPLACED",
    /// QEMU refuses to start: RAM, hot-plug memory and the PCI hole do not fit below 2^phys-bits.
    PhysBitsTooLow = "PHYS_BITS_TOO_LOW",
    /// The firmware never finishes.
    FirmwareHangs = "FIRMWARE_HANGS",
    /// The firmware gives up: every device of the guest, disks included, is without BARs.
    AllocationGivenUp = "ALLOCATION_GIVEN_UP",
    /// What this firmware does with this guest is not known.
    FirmwareUnpredictable = "FIRMWARE_UNPREDICTABLE",
    /// The guest's width is above the host's.
    BitsAboveHost = "BITS_ABOVE_HOST",
    /// The guest's width is above what the IOMMU translates.
    BitsAboveIommu = "BITS_ABOVE_IOMMU",
    /// The firmware uses fewer bits than the guest has.
    BitsClamped = "BITS_CLAMPED",
    /// A setting of the width that has no effect.
    BitsIgnored = "BITS_IGNORED",
    /// A width that QEMU or libvirt rejects.
    BitsInvalid = "BITS_INVALID",
    /// The CPU model has no 1 GiB pages: OVMF then uses 40 bits at most.
    NoGibPages = "NO_GIB_PAGES",
    /// `X-PciMmio64Mb` makes the window too small.
    FwCfgTooSmall = "FW_CFG_TOO_SMALL",
    /// `X-PciMmio64Mb` is not a number the firmware accepts.
    FwCfgInvalid = "FW_CFG_INVALID",
    /// `X-PciMmio64Mb` has no effect on this firmware.
    FwCfgIgnored = "FW_CFG_IGNORED",
    /// The host's width is not known.
    HostBitsUnknown = "HOST_BITS_UNKNOWN",
    /// The IOMMU's width is not known.
    IommuBitsUnknown = "IOMMU_BITS_UNKNOWN",
    /// The CPU's vendor or features are assumed.
    CpuAssumed = "CPU_ASSUMED",
    /// The firmware or its version is assumed.
    FirmwareAssumed = "FIRMWARE_ASSUMED",
    /// libvirt's version is not known.
    LibvirtAssumed = "LIBVIRT_ASSUMED",
    /// libvirt is older than 8.7 and has no `<maxphysaddr>`.
    LibvirtTooOld = "LIBVIRT_TOO_OLD",
    /// BAR sizes come from the catalogue.
    BarsFromCatalogue = "BARS_FROM_CATALOGUE",
    /// BAR sizes are those of a device named on the command line.
    BarsAssumed = "BARS_ASSUMED",
    /// BAR sizes are in no source.
    BarsUnknown = "BARS_UNKNOWN",
    /// The sizes of a mediated device are not in the XML.
    MdevUnknown = "MDEV_UNKNOWN",
    /// The network of an interface may hand out a virtual function at start.
    NetworkMayBeVf = "NETWORK_MAY_BE_VF",
    /// Shared memory of a server's, of a size that is not in the XML: taken to be 4 MiB.
    SharedMemoryUnknown = "SHARED_MEMORY_UNKNOWN",
    /// An emulated device that barfit does not know.
    DeviceUnknown = "DEVICE_UNKNOWN",
    /// Part of the QEMU command line that barfit does not understand.
    CommandLineNotUnderstood = "COMMAND_LINE_NOT_UNDERSTOOD",
    /// Guest PCI addresses are missing: assumed as libvirt assigns them.
    AddressesAssumed = "ADDRESSES_ASSUMED",
    /// A guest PCI address that libvirt or QEMU refuses.
    AddressInvalid = "ADDRESS_INVALID",
    /// None of the domain's host devices is in this machine.
    NotTheHypervisor = "NOT_THE_HYPERVISOR",
    /// Not an x86 PC.
    NotSupported = "NOT_SUPPORTED",
    /// Everything is placed; nothing needs to change.
    AllPlaced = "ALL_PLACED",
    /// No device of the host is passed through.
    NoPassthrough = "NO_PASSTHROUGH",
    /// Which widths were tried, and what each gives.
    BitsTried = "BITS_TRIED",
    /// The largest width that may be used, and what sets it.
    BitsBound = "BITS_BOUND",
    /// Adding up BAR sizes gives another number of bits, and why that is wrong.
    SumIsWrong = "SUM_IS_WRONG",
    /// What the plan changes, and that every device is placed then.
    Planned = "PLANNED",
    /// Nothing that may be changed makes everything fit.
    DoesNotFit = "DOES_NOT_FIT",
    /// A rule of the policy applies.
    PolicyRule = "POLICY_RULE",
    /// The policy forbids what would be needed.
    PolicyForbids = "POLICY_FORBIDS",
    /// Room is kept for GPUs plugged in later.
    Headroom = "HEADROOM",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::Code;

    #[test]
    fn codes_are_unique_and_shouted() {
        let mut seen: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert!(
            seen.iter().all(|c| c.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'))
        );
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), Code::ALL.len());
    }
}
