//! The view itself: plain data, one type a concept, in the order of the XML.

use std::path::PathBuf;

use crate::units::{Bytes, PciAddress};

/// A domain as far as its address space is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// `<name>`; empty when there is none.
    pub name: String,
    /// `<uuid>`, lower case with hyphens.
    pub uuid: Option<String>,
    /// `type=` of `<domain>`: how the guest's CPU runs.
    pub virt: VirtType,
    /// The dump is of a running guest (`id=` is present).
    pub running: bool,
    /// `arch=` of `<os><type>`; absent means the emulator's default, x86_64 for our purposes.
    pub arch: Option<String>,
    /// `machine=` of `<os><type>` as written: `pc-q35-7.2`, `q35`, `pc`; absent means libvirt's default (`pc`).
    pub machine: Option<String>,
    /// `<emulator>`.
    pub emulator: Option<PathBuf>,
    /// What `<os>` says about firmware.
    pub firmware: FirmwareRequest,
    /// Memory in every form.
    pub memory: Memory,
    /// `<cpu>`; `None` when the element is missing.
    pub cpu: Option<Cpu>,
    /// PCI controllers, as listed.
    pub controllers: Vec<Controller>,
    /// Everything that shows a PCI function to the guest, in document order.
    pub devices: Vec<Device>,
    /// Host devices whose BARs cannot be known from the XML (an mdev, a network's VF): one sentence each.
    pub unresolved: Vec<Unresolved>,
    /// `<pcihole64>` of the root controller, when given (0 is a value).
    pub pci_hole64: Option<Bytes>,
    /// `<qemu:commandline>`, and what barfit understands of it.
    pub command_line: CommandLine,
    /// Nova's flavor name, from its metadata.
    pub flavor: Option<String>,
    /// `type=` of `<launchSecurity>` (`sev`, `sev-snp`, `tdx`): the guest's memory is encrypted.
    pub launch_security: Option<String>,
    /// barfit's own element in `<metadata>` (namespace [`POLICY_NAMESPACE`]), attribute or child text by key.
    pub policy: Vec<(String, String)>,
}

/// Namespace URI of barfit's element in `<metadata>`.
pub const POLICY_NAMESPACE: &str = "https://barfit.dev/xmlns/domain/1";
/// Namespace URI of `<qemu:commandline>`.
pub const QEMU_NAMESPACE: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// How the guest's CPU runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VirtType {
    /// `kvm`: vendor and limits are the host's.
    Kvm,
    /// `qemu`: TCG; the CPU is what the model says.
    Qemu,
    /// Something libvirt's QEMU driver does not run (`xen`, `lxc`, `hvf`…).
    Other(String),
}

/// Which of QEMU's PC machines the guest is: it decides where devices go.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum MachineFamily {
    /// `q35`: PCI Express.
    Q35,
    /// `pc`, also libvirt's default: conventional PCI.
    I440fx,
    /// `microvm`, `isapc`, `virt`…: nothing is known of its buses here.
    Other,
}

impl MachineFamily {
    /// By the machine's name (`qemuDomainMachineIsQ35`, `qemuDomainMachineIsI440FX`, libvirt 9.0
    /// `src/qemu/qemu_domain.c`), Ubuntu's aliases included.
    pub fn of(machine: Option<&str>) -> MachineFamily {
        let Some(name) = machine else { return MachineFamily::I440fx };
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        if matches!(name, "q35" | "ubuntu-q35") || starts(&["pc-q35"]) {
            MachineFamily::Q35
        } else if matches!(name, "pc" | "ubuntu") || starts(&["pc-0.", "pc-1.", "pc-i440", "rhel"]) {
            MachineFamily::I440fx
        } else {
            MachineFamily::Other
        }
    }
}

impl Domain {
    /// Which of QEMU's PC machines the guest is.
    pub fn family(&self) -> MachineFamily {
        MachineFamily::of(self.machine.as_deref())
    }

    /// Whether anything of the host is passed through for certain.
    pub fn passes_through(&self) -> bool {
        self.devices.iter().any(|device| matches!(device.kind, DeviceKind::Host { .. }))
            || self.unresolved.iter().any(|unresolved| unresolved.kind == UnresolvedKind::Mediated)
    }
}

/// What `<os>` asks for. Which file that means on a given host is not decided here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirmwareRequest {
    /// No loader, no `firmware=`: QEMU's built-in SeaBIOS.
    Default,
    /// `<os firmware='efi'>`, loader chosen by libvirt at start; a loader that libvirt has filled in beside it.
    AutoEfi {
        /// `<loader>` path, where libvirt 9.2 and later writes it.
        loader: Option<PathBuf>,
    },
    /// `<os firmware='bios'>`.
    AutoBios,
    /// `<loader type='pflash'>`: UEFI.
    Pflash(PathBuf),
    /// `<loader>` without type or `type='rom'`: BIOS or a UEFI single image, by its content.
    Rom(PathBuf),
}

/// Memory of the domain. All sizes are what QEMU gets (rounded up to MiB).
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// RAM at boot (`-m size=`): NUMA cells override `<memory>`, memory devices are subtracted.
    pub boot: Bytes,
    /// `<maxMemory>` with its slots.
    pub max: Option<MaxMemory>,
    /// Sum of `sgx-epc` devices.
    pub sgx_epc: Bytes,
    /// Sum of the other memory devices (dimm, nvdimm, virtio-mem…): they live inside the hot-plug area.
    pub plugged: Bytes,
}

/// `<maxMemory slots='16' unit='KiB'>`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct MaxMemory {
    /// Upper bound of boot RAM plus memory devices.
    pub size: Bytes,
    /// DIMM slots.
    pub slots: u32,
}

/// `<cpu>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// `mode=`; `Custom` when absent.
    pub mode: CpuMode,
    /// `<model>` text.
    pub model: Option<String>,
    /// `<vendor>` text (`Intel`, `AMD`).
    pub vendor: Option<String>,
    /// `vendor_id=` of `<model>`: the vendor string the guest sees (`AuthenticAMD`), whatever the model.
    pub vendor_id: Option<String>,
    /// `<feature name= policy=>` in order; policy defaults to `require`.
    pub features: Vec<(String, FeaturePolicy)>,
    /// `<maxphysaddr>`; the first one if there are several, as libvirt does.
    pub maxphysaddr: Option<MaxPhysAddr>,
    /// `migratable=` of host-passthrough, if given.
    pub migratable: Option<bool>,
}

/// `mode=` of `<cpu>`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum CpuMode {
    /// A named model (or none: QEMU's default, qemu64).
    #[default]
    Custom,
    /// libvirt picks the named model nearest to the host.
    HostModel,
    /// `-cpu host`.
    HostPassthrough,
    /// `-cpu max`.
    Maximum,
}

/// `policy=` of a CPU feature.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum FeaturePolicy {
    /// Given although the host lacks it.
    Force,
    /// Must be there.
    Require,
    /// If the host has it.
    Optional,
    /// Taken away.
    Disable,
    /// The guest does not start on a host that has it.
    Forbid,
}

/// `<maxphysaddr mode= bits= limit=/>`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct MaxPhysAddr {
    /// `mode=`.
    pub mode: MaxPhysAddrMode,
    /// `bits=` as written; may be nonsense.
    pub bits: Option<u64>,
    /// `limit=` as written (libvirt 9.3 and later).
    pub limit: Option<u64>,
}

/// `mode=` of `<maxphysaddr>`.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum MaxPhysAddrMode {
    /// The host's width.
    Passthrough,
    /// The width in `bits=`.
    Emulate,
}

/// `<controller type='pci'>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// `index=`: what `bus=` of guest addresses refers to.
    pub index: u32,
    /// Without `index=`: libvirt keeps it behind the controllers up to this index, whatever index it gets.
    pub after: Option<u32>,
    /// `model=`.
    pub model: ControllerModel,
    /// Its own place in the guest; absent before define, and for the root.
    pub address: Option<PciAddress>,
    /// `hotplug=` of `<target>` (`off` = no padding); default on.
    pub hotplug: bool,
    /// `busNr=` of an expander bus's target.
    pub bus_nr: Option<u8>,
    /// `<model name=>`: `pcie-root-port`, `ioh3420`, ….
    pub hardware: Option<String>,
    /// Space reserved for what may be plugged later: `memReserve=` of `<target>` (newer libvirts), and
    /// `io-reserve=` and so on where `<qemu:commandline>` makes the port.
    pub reserve: PortReserve,
    /// `<alias name=>`, or `id=` on QEMU's command line.
    pub alias: Option<String>,
    /// Line in the XML, for messages.
    pub line: u32,
    /// `-device` on QEMU's command line: index of its value in [`CommandLine::args`].
    pub arg: Option<usize>,
    /// `-device` without `addr=`: the bus it names, as a controller index. The slot is QEMU's choice.
    pub bus: Option<u8>,
}

/// Space a bridge asks the firmware to keep for it; `None` means not given.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct PortReserve {
    /// `io-reserve=`.
    pub io: Option<Bytes>,
    /// `mem-reserve=`.
    pub mem: Option<Bytes>,
    /// `pref32-reserve=`.
    pub pref32: Option<Bytes>,
    /// `pref64-reserve=`.
    pub pref64: Option<Bytes>,
}

/// `model=` of a PCI controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControllerModel {
    /// Root of q35.
    PcieRoot,
    /// Root of i440fx.
    PciRoot,
    /// `pcie-root-port`.
    RootPort,
    /// `pcie-switch-upstream-port`.
    SwitchUpstream,
    /// `pcie-switch-downstream-port`.
    SwitchDownstream,
    /// `pcie-to-pci-bridge`.
    PcieToPciBridge,
    /// `pci-bridge`.
    PciBridge,
    /// `dmi-to-pci-bridge`.
    DmiToPciBridge,
    /// `pcie-expander-bus`.
    PcieExpander,
    /// `pci-expander-bus`.
    PciExpander,
    /// One barfit does not know.
    Other(String),
}

/// A PCI function that the guest will see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// Its place in the guest (`bus` is a controller index); absent before define.
    pub address: Option<PciAddress>,
    /// `multifunction='on'`.
    pub multifunction: bool,
    /// `<alias name=>`.
    pub alias: Option<String>,
    /// Line in the XML, for messages.
    pub line: u32,
    /// Which element it stands in: libvirt gives addresses out in the order of these, not of the text.
    pub element: Element,
    /// `index=` of a `<controller>`; of a `<disk>` the number in its name (`vda` is 0).
    pub index: Option<u32>,
    /// What `index=` of a `<controller>` is once the domain is defined; 0 for everything else.
    pub number: u32,
    /// Not written: libvirt adds it when the domain is defined.
    pub implicit: bool,
    /// `-device` on QEMU's command line: index of its value in [`CommandLine::args`].
    pub arg: Option<usize>,
    /// `-device` without `addr=`: the bus it names, as a controller index. The slot is QEMU's choice.
    pub bus: Option<u8>,
}

/// The element of a device, in the order in which libvirt gives out addresses
/// (`qemuDomainAssignDevicePCISlots`, libvirt 9.0 `src/qemu/qemu_domain_address.c`).
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// `<filesystem>`.
    Filesystem,
    /// `<interface>`, but for type hostdev.
    Interface,
    /// `<sound>`.
    Sound,
    /// `<controller>` of a type other than pci: usb, sata, ide, scsi, virtio-serial, nvme.
    Controller,
    /// `<disk>`.
    Disk,
    /// `<hostdev>`, and `<interface type='hostdev'>`.
    Hostdev,
    /// `<memballoon>`.
    Memballoon,
    /// `<rng>`.
    Rng,
    /// `<watchdog>`.
    Watchdog,
    /// `<video>`.
    Video,
    /// `<shmem>`.
    Shmem,
    /// `<input>`.
    Input,
    /// `<serial>`.
    Serial,
    /// `<iommu>`.
    Iommu,
    /// `<vsock>`.
    Vsock,
    /// `<memory>` in `<devices>`.
    Memory,
    /// `<crypto>` (after libvirt 9.0).
    Crypto,
    /// `<panic>`, where it is a PCI device (after libvirt 9.0).
    Panic,
    /// `<pstore>` (after libvirt 9.0).
    Pstore,
    /// `-device` in `<qemu:commandline>`; QEMU gives the address.
    CommandLine,
}

/// What a device is, as far as its BARs are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A host PCI function: `<hostdev type='pci'>`, `<interface type='hostdev'>`, `-device vfio-pci`.
    Host {
        /// Host address.
        host: PciAddress,
        /// `<rom bar='off'>` is not set.
        rom_bar: bool,
        /// Where it stands.
        form: HostForm,
    },
    /// An emulated device, or a mediated one of the host (`vfio-pci`, see [`Domain::unresolved`]): QEMU's name for it (`virtio-net-pci`, `qxl-vga`, `ivshmem-plain`, `nvme`…), with the
    /// sizes that its BARs depend on.
    Emulated {
        /// QEMU's device name.
        driver: String,
        /// Size properties by QEMU's name (`size`, `ram_size`, `vram64_size_mb`, `membar`, …), in bytes.
        /// `rombar` of 0 bytes: its expansion ROM is off.
        sizes: Vec<(String, Bytes)>,
    },
}

/// Where a host device was written.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostForm {
    /// `<hostdev mode='subsystem' type='pci'>`.
    Hostdev,
    /// `<interface type='hostdev'>`.
    Interface,
    /// `-device vfio-pci,host=…` in `<qemu:commandline>`.
    CommandLine,
}

/// A device whose BARs the XML cannot tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// Why: `mdev c2177883-… `, `network "sriov" may pick a virtual function at start`.
    pub what: String,
    /// Line in the XML.
    pub line: u32,
    /// What keeps it from being known.
    pub kind: UnresolvedKind,
}

/// What keeps the BARs of a device from being known.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum UnresolvedKind {
    /// A mediated device: only its driver knows.
    Mediated,
    /// The interface of a network that may hand out a virtual function.
    Network,
    /// Shared memory of a server's: only that knows its size.
    SharedMemory,
}

/// `<qemu:commandline>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// Every `<qemu:arg>` in order.
    pub args: Vec<String>,
    /// `opt/ovmf/X-PciMmio64Mb`, in either spelling.
    pub mmio64: Option<FwCfgString>,
    /// What `-global` and a second `-cpu` say about the width.
    pub cpu: CpuArgs,
    /// `pci-hole64-size` of the host bridge by `-global`.
    pub pci_hole64: Option<Bytes>,
    /// `max-ram-below-4g` by `-machine`.
    pub max_ram_below_4g: Option<Bytes>,
    /// Every `-global` in order.
    pub globals: Vec<Global>,
    /// What barfit saw and cannot take into account: one sentence each.
    pub not_understood: Vec<String>,
}

/// `-global driver.property=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Global {
    /// QEMU's type name.
    pub driver: String,
    /// Property.
    pub property: String,
    /// Value as written.
    pub value: String,
    /// Index of the option's value in [`CommandLine::args`].
    pub arg: usize,
}

/// An fw_cfg entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FwCfgString {
    /// `string=` value; `None` when the entry is a `file=` or something else that cannot be read here.
    pub value: Option<String>,
    /// Index of the option's value in [`CommandLine::args`].
    pub arg: usize,
}

/// Width properties on the QEMU command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuArgs {
    /// `-global …phys-bits=N` with a type that QEMU honours, last one wins.
    pub phys_bits: Option<u64>,
    /// Index in [`CommandLine::args`] of the word that says it.
    pub phys_bits_arg: Option<usize>,
    /// `-global …host-phys-bits=on|off`.
    pub host_phys_bits: Option<bool>,
    /// `-global …host-phys-bits-limit=N`.
    pub host_phys_bits_limit: Option<u64>,
    /// `-global …guest-phys-bits=N` (QEMU 9.1 and later).
    pub guest_phys_bits: Option<u64>,
    /// A whole `-cpu` that replaces libvirt's.
    pub replaced: Option<String>,
}

/// `-cpu model,property=value,…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuOption {
    /// Model: a named one, `host`, `max`.
    pub model: String,
    /// Properties in order; `+feature` is `on`, `-feature` is `off`, `_` is `-`.
    pub properties: Vec<(String, String)>,
}
