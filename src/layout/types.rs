//! What the layout is computed from, and what comes out. Numbers only: nothing here knows XML or sysfs.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::SeaBiosRules;
use crate::units::{Addr, Bar, Bytes, PhysBits, Span};

/// A guest as the firmware will find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The machine: chipset and the rules of its version.
    pub machine: MachineRules,
    /// RAM at boot (QEMU's `-m size=`), without DIMMs and other hot-plug memory.
    pub ram: Bytes,
    /// Hot-plug memory, if the guest has any (`-m …,slots=S,maxmem=M`).
    pub hotplug: Option<HotplugMemory>,
    /// SGX EPC sections: they sit right above RAM and push everything else up.
    pub sgx_epc: Bytes,
    /// `max-ram-below-4g` of the machine, if set.
    pub max_ram_below_4g: Option<Bytes>,
    /// `pci-hole64-size` of the host bridge: QEMU counts it when it checks phys-bits. Default 32 GiB (q35), 2 GiB (i440fx).
    pub pci_hole64: Bytes,
    /// What CPUID will tell the guest.
    pub cpu: GuestCpu,
    /// The firmware and its rules.
    pub firmware: Firmware,
    /// Value of fw_cfg `opt/ovmf/X-PciMmio64Mb` as text, if given. Each era parses it its own way.
    pub mmio64_mb: Option<String>,
    /// Everything on the root bus, in order of device and function number, built-in devices included.
    /// Expander buses (pxb) are bridges here too.
    pub bus: Functions,
}

impl Guest {
    /// The same guest with another CPU and another [`Guest::mmio64_mb`].
    pub fn with(&self, cpu: GuestCpu, mmio64_mb: Option<String>) -> Guest {
        Guest { cpu, mmio64_mb, ..self.clone() }
    }
}

/// Functions in a row, shared by all copies of a [`Guest`] until one of them changes its own.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Functions(Arc<Vec<Function>>);

impl Deref for Functions {
    type Target = Vec<Function>;

    fn deref(&self) -> &Vec<Function> {
        &self.0
    }
}

impl DerefMut for Functions {
    fn deref_mut(&mut self) -> &mut Vec<Function> {
        Arc::make_mut(&mut self.0)
    }
}

impl From<Vec<Function>> for Functions {
    fn from(functions: Vec<Function>) -> Functions {
        Functions(Arc::new(functions))
    }
}

impl FromIterator<Function> for Functions {
    fn from_iter<I: IntoIterator<Item = Function>>(functions: I) -> Functions {
        Vec::from_iter(functions).into()
    }
}

impl fmt::Debug for Functions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Hot-plug memory: what `-m slots=,maxmem=` reserves.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct HotplugMemory {
    /// QEMU's `maxmem`: boot RAM plus all that may ever be plugged.
    pub max: Bytes,
    /// Number of slots; QEMU adds 1 GiB of address space for each.
    pub slots: u32,
}

/// PC chipset family.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Chipset {
    /// PCI Express machine.
    Q35,
    /// The old PCI machine (`pc`).
    I440fx,
}

/// What depends on QEMU's machine type and its version.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct MachineRules {
    /// Chipset family.
    pub chipset: Chipset,
    /// QEMU (the program, 7.1 and later) refuses to start when 2^phys-bits is too low.
    pub checks_phys_bits: bool,
    /// RAM of a guest with an AMD CPU moves above 1 TiB rather than into the HyperTransport hole (machine 7.1 and later).
    pub relocates_around_ht_hole: bool,
    /// i440fx keeps 3 GiB below 4 GiB (machine 2.0 and later; before, 3.5 GiB).
    pub gigabyte_align: bool,
    /// DIMMs are aligned to 1 GiB, so each slot reserves 1 GiB more (machine 2.2 and later).
    pub aligned_dimm: bool,
}

/// CPU vendor as the guest's CPUID says it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum CpuVendor {
    /// GenuineIntel.
    Intel,
    /// AuthenticAMD.
    Amd,
    /// Any other string (HygonGenuine, CentaurHauls…).
    Other,
}

/// What CPUID tells the guest about addresses.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct GuestCpu {
    /// Vendor string.
    pub vendor: CpuVendor,
    /// CPUID 80000008 EAX[7:0].
    pub phys_bits: PhysBits,
    /// CPUID 80000008 EAX[23:16] when not zero (QEMU 9.1 and later, KVM).
    pub guest_phys_bits: Option<PhysBits>,
    /// 1 GiB pages (`pdpe1gb`).
    pub gib_pages: bool,
    /// 5-level paging (`la57`).
    pub la57: bool,
    /// Long mode; a 32-bit CPU model has none.
    pub long_mode: bool,
}

/// Which firmware, with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// UEFI firmware of edk2's OvmfPkg.
    Ovmf(OvmfRules),
    /// SeaBIOS.
    SeaBios(SeaBiosRules),
}

impl Firmware {
    /// What people call it: `OVMF 202411`, `OVMF 202411 with an exact X-PciMmio64Mb`, `SeaBIOS 1.16.2`.
    pub fn name(&self) -> String {
        match self {
            Firmware::Ovmf(rules) if rules.fw_cfg_override => {
                format!("OVMF {} with an exact X-PciMmio64Mb", rules.era)
            }
            Firmware::Ovmf(rules) => format!("OVMF {}", rules.era),
            Firmware::SeaBios(rules) => format!("SeaBIOS {}", rules.version),
        }
    }
}

/// How OVMF decides, as data: one row an era plus what a build may differ in (backports, build options).
/// Sources: edk2 OvmfPkg/Library/PlatformInitLib/MemDetect.c and MdeModulePkg PciBusDxe at the named tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OvmfRules {
    /// Name of the era: the edk2-stable tag that began it, `202211`.
    pub era: String,
    /// CPUID's width is used (202211 and later); before, only the classic window exists.
    pub reads_cpuid: bool,
    /// Dynamic window is 2^(P - this): 3 (an eighth) or 2 (a quarter).
    pub window_shift: u8,
    /// Clamp with 4-level paging: 47 (202211, 202302, 202305) or 46.
    pub clamp: u8,
    /// Built with 5-level paging (no known distribution; 202405 and later can).
    pub five_level: bool,
    /// CPUID guest-phys-bits are honoured (202408 and later).
    pub reads_guest_phys_bits: bool,
    /// The dynamic window moves below reserved e820 entries (202302 and later).
    pub avoids_reserved: bool,
    /// `X-PciMmio64Mb` is the window's exact size (202505 and backports) rather than a minimum.
    pub fw_cfg_override: bool,
    /// Strict parser and 16 TiB cap of `X-PciMmio64Mb` (202005 and later).
    pub fw_cfg_strict: bool,
    /// Hot-plug ports get a share of a large window as padding (202211 and later).
    pub pads_pref64: bool,
    /// Hot-plug ports get I/O padding by default (before 202308).
    pub pads_io: bool,
    /// MMCONFIG at 0xE0000000 (202305 and later) instead of 0xB0000000: moves the 32-bit window.
    pub mmconfig_e0: bool,
    /// Built with 1 GiB page tables (`PcdUse1GPageTable`); AmdSev builds are not.
    pub gib_page_tables: bool,
    /// Guests that end below 1 TiB go back from 5-level to 4-level paging (202411 and later).
    pub four_level_below_1t: bool,
    /// Behind a bridge, 64-bit BARs that are not prefetchable go high like the others (202602 only, reverted).
    pub mem64_through_pref64: bool,
}

/// Which function of the guest: the caller's own number, unique in a [`Guest`].
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionId(pub u32);

/// One PCI function of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// The caller's number.
    pub id: FunctionId,
    /// Device number on its bus, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
    /// BARs, expansion ROM (index 6) included; of a bridge its own registers, not what it forwards.
    pub bars: Vec<Bar>,
    /// Class 030000 (VGA compatible): the firmware never gives such a device up to make room.
    pub vga: bool,
    /// Class 0c03 (USB controller): SeaBIOS keeps such a device on the root bus below 4 GiB.
    pub usb: bool,
    /// Endpoint or bridge.
    pub role: Role,
}

/// Whether a function ends a branch of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// A device.
    Endpoint,
    /// A bridge with a bus behind it.
    Bridge(Bridge),
}

/// A bridge and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its kind.
    pub kind: BridgeKind,
    /// Whether the firmware sees it as able to hot-plug, and so pads it.
    pub hotplug: bool,
    /// Reservations that QEMU's capability announces (`io-reserve=` and so on).
    pub reserve: Reserve,
    /// Functions on the bus behind it, in order of device and function number.
    pub children: Vec<Function>,
}

/// QEMU's resource reservation of a bridge; `None` means not given.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Reserve {
    /// `io-reserve=`.
    pub io: Option<Bytes>,
    /// `mem-reserve=`.
    pub mem: Option<Bytes>,
    /// `pref32-reserve=`.
    pub pref32: Option<Bytes>,
    /// `pref64-reserve=`.
    pub pref64: Option<Bytes>,
}

/// Kinds of bridges QEMU has.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum BridgeKind {
    /// `pcie-root-port`.
    RootPort,
    /// `ioh3420`: a root port without QEMU's reservation capability.
    Ioh3420,
    /// `x3130-upstream`.
    SwitchUpstream,
    /// `xio3130-downstream`.
    SwitchDownstream,
    /// `pcie-pci-bridge`.
    PciePciBridge,
    /// `pci-bridge`.
    PciBridge,
    /// `i82801b11-bridge` (dmi-to-pci-bridge).
    DmiToPci,
    /// `pxb` / `pxb-pcie`: a root bus of its own, with this bus number.
    Expander {
        /// Bus number (`bus_nr=`).
        bus_nr: u8,
    },
}

/// Where everything ended up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// RAM, hot-plug area and holes.
    pub ram: RamMap,
    /// The width the guest can use, and why.
    pub width: Width,
    /// The 64-bit window; `None` when there is none (or it never came to one).
    pub window: Option<Window>,
    /// How the boot went as far as BARs are concerned.
    pub outcome: Outcome,
    /// Every BAR of every function, depth first, what is on expander buses last. Expansion ROMs are left out: the
    /// firmware copies them and keeps no address for them.
    pub bars: Vec<PlacedBar>,
}

/// QEMU's memory map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamMap {
    /// RAM from 0 up to below 4 GiB.
    pub below_4g: Bytes,
    /// RAM above 4 GiB (from 1 TiB where it was relocated), SGX EPC excluded.
    pub above_4g: Option<Span>,
    /// SGX EPC.
    pub sgx_epc: Option<Span>,
    /// Hot-plug memory area.
    pub hotplug: Option<Span>,
    /// Reserved ranges that a window must avoid (AMD HyperTransport).
    pub reserved: Vec<Span>,
    /// First address above RAM and hot-plug memory.
    pub top: Addr,
    /// Last address QEMU wants inside 2^phys-bits (RAM, hot-plug memory and pci-hole64).
    pub max_used: Addr,
}

/// The width of the guest's address space.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Width {
    /// What CPUID says.
    pub cpuid: PhysBits,
    /// What the firmware makes of it: the clamped width, or the width that follows from the classic window.
    pub usable: PhysBits,
    /// Which rule decided.
    pub because: WidthRule,
}

/// Why the usable width is what it is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum WidthRule {
    /// The firmware takes CPUID's word.
    Cpuid,
    /// The firmware does not read CPUID (before 202211, SeaBIOS before 1.16.3).
    NotRead,
    /// The firmware takes the value for QEMU's meaningless default (40 on Intel, for instance).
    NotTrusted,
    /// Clamped to what 4-level paging maps (46 or 47) or 5-level (48).
    PagingClamp,
    /// Clamped to 40: no 1 GiB pages.
    NoGibPages,
    /// CPUID's guest-phys-bits are lower.
    GuestPhysBits,
    /// SeaBIOS 1.17: 44 while RAM ends below 1 TiB.
    SeaBiosClamp,
}

/// The firmware's 64-bit MMIO window.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Where it lies.
    pub span: Span,
    /// Which rule made it.
    pub rule: WindowRule,
    /// Bytes that all 64-bit BARs and bridge windows need, alignment included.
    pub needed: Bytes,
}

/// Rules that make a window.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum WindowRule {
    /// 32 GiB right above RAM.
    Classic,
    /// The top eighth of the address space.
    DynamicEighth,
    /// The top quarter.
    DynamicQuarter,
    /// `X-PciMmio64Mb` right above RAM.
    FwCfg,
    /// SeaBIOS: as much as is needed.
    SeaBios,
}

/// How the boot goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The firmware finishes; some devices may be unplaced.
    Boots,
    /// QEMU refuses to start, for an address beyond 2^phys-bits; or libvirt or QEMU for what the domain asks.
    Refused,
    /// The firmware never finishes (or crashes); the reason in words.
    Hangs(String),
    /// The firmware gives up the whole allocation: no device has a BAR; the reason in words.
    GivesUp(String),
}

/// One BAR and the address it got.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct PlacedBar {
    /// Whose.
    pub function: FunctionId,
    /// Which.
    pub bar: Bar,
    /// Address given by the firmware, or `None`: unplaced.
    pub address: Option<Addr>,
    /// `false` when no guest can use it: it has no address, or one beyond 2^phys-bits, over RAM, or outside what is
    /// left of its port's window.
    pub reachable: bool,
    /// Not reachable, but Linux finds another place for it (what Linux 6.1 does; known for SeaBIOS only).
    /// Nothing to rely on: another kernel may not.
    pub rescued: bool,
}
