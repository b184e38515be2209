//! The BARs of passed-through devices, and where they are known from.
//!
//! In this order: the host's facts (sysfs or a host file), the catalogue by PCI id, the device named with
//! `--assume-gpu`. A device in none of them is unknown, and so is the guest's layout.
//!
//! `--assume-gpu` makes no GPU of what the domain itself shows to be none: the virtual function of an
//! `<interface>`, and the further functions of a card that is passed through whole (a graphics card's audio).

use std::borrow::Cow;

use crate::catalogue::{self, Confidence};
use crate::domain::HostForm;
use crate::finding::{Code, Finding};
use crate::host::{HostFacts, PciFunction};
use crate::layout::FunctionId;
use crate::units::{Bar, BarKind, Bytes, PciAddress};

/// BARs of a virtual function larger than those of any network card known: 64 MiB and 64 KiB.
pub(super) const LARGE_VF: [Bar; 2] = [
    Bar { index: 0, size: Bytes(64 << 20), kind: BarKind::Mem64Prefetchable },
    Bar { index: 4, size: Bytes(64 << 10), kind: BarKind::Mem64Prefetchable },
];

/// The BAR of a card's further function as large as those known: 256 KiB (a USB controller; audio has 16 KiB).
const COMPANION: [Bar; 1] = [Bar { index: 0, size: Bytes(256 << 10), kind: BarKind::Mem32 }];

/// A passed-through PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Its number in the layout.
    pub id: FunctionId,
    /// Where it is on the host; `None` for an emulated device that the policy counts as a GPU.
    pub host: Option<PciAddress>,
    /// Where libvirt puts it in the guest; `bus` is a controller index.
    pub guest: Option<PciAddress>,
    /// What it is called.
    pub name: Cow<'static, str>,
    /// Counts as a GPU.
    pub gpu: bool,
    /// VGA class: the firmware never drops it.
    pub vga: bool,
    /// USB controller: SeaBIOS keeps it below 4 GiB.
    pub usb: bool,
    /// Where the BARs are known from; `None` when they are not.
    pub source: Option<Source>,
    /// BARs, expansion ROM included if the guest sees it.
    pub bars: Vec<Bar>,
    /// How it is written in the domain.
    pub form: HostForm,
}

/// Where BAR sizes are known from.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// This machine's sysfs.
    Sysfs,
    /// A host file given with `--host`.
    HostFile,
    /// The catalogue, by PCI id.
    Catalogue,
    /// The device named on the command line.
    Assumed,
    /// QEMU's own device, whose BARs the domain says.
    Emulated,
}

impl HostDevice {
    /// What messages call it: its host address, or the word for an emulated one.
    pub fn place(&self) -> String {
        self.host.map_or_else(|| "emulated".to_owned(), |host| host.to_string())
    }
}

/// Where to look.
pub(super) struct Sources<'a> {
    /// What the host has, by address; the first of those of one address counts.
    pub host: Vec<&'a PciFunction>,
    /// Where `host` itself comes from.
    pub host_is: Source,
    /// The device of `--assume-gpu`.
    pub assume: Option<&'static catalogue::Entry>,
    /// Ids that the policy counts as GPUs.
    pub also_gpu: &'a dyn Fn(&str, &str) -> bool,
    /// Host addresses of all functions passed through.
    pub passed: Vec<PciAddress>,
}

/// What stands in for a device that no source knows.
#[derive(Copy, Clone)]
enum StandIn {
    /// The device of `--assume-gpu`.
    Gpu(&'static catalogue::Entry),
    /// A virtual function of a network card.
    Vf,
    /// A further function of a card that is passed through.
    Companion,
}

impl StandIn {
    fn bars(self) -> Vec<Bar> {
        match self {
            Self::Gpu(entry) => entry.bars(),
            Self::Vf => LARGE_VF.to_vec(),
            Self::Companion => COMPANION.to_vec(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gpu(entry) => entry.name,
            Self::Vf => "network function",
            Self::Companion => "further function of a card",
        }
    }
}

/// The host's functions by address.
pub(super) fn by_address(host: &HostFacts) -> Vec<&PciFunction> {
    let mut functions: Vec<_> = host.pci.iter().collect();
    functions.sort_by_key(|function| function.address);
    functions
}

impl<'a> Sources<'a> {
    fn function(&self, address: PciAddress) -> Option<&'a PciFunction> {
        let first = self.host.partition_point(|function| function.address < address);
        self.host.get(first).copied().filter(|function| function.address == address)
    }

    /// What stands in for the device at `host`, if `--assume-gpu` asks for stand-ins.
    fn stand_in(&self, host: PciAddress, form: HostForm) -> Option<StandIn> {
        let entry = self.assume?;
        let first = PciAddress { function: 0, ..host };
        Some(if form == HostForm::Interface {
            StandIn::Vf
        } else if host != first && self.passed.contains(&first) {
            StandIn::Companion
        } else {
            StandIn::Gpu(entry)
        })
    }

    /// Looks a device up. `rom_bar` says that the guest sees its expansion ROM.
    pub(super) fn look_up(
        &self,
        id: FunctionId,
        host: PciAddress,
        guest: Option<PciAddress>,
        rom_bar: bool,
        form: HostForm,
        findings: &mut Vec<Finding>,
    ) -> HostDevice {
        let function = self.function(host);
        let entry = function.and_then(|f| catalogue::by_id(&f.vendor, &f.device));
        let known = function.and_then(|f| f.bars.clone()).map(|bars| (self.host_is, bars));
        let by_id = || entry.map(|entry| (Source::Catalogue, entry.bars()));
        let mut stand_in = self.stand_in(host, form);
        let found = known.or_else(by_id).inspect(|_| stand_in = None);
        let found = found.or_else(|| stand_in.map(|device| (Source::Assumed, device.bars())));
        let source = found.as_ref().map(|(source, _)| *source);
        let mut bars = found.map(|(_, bars)| bars).unwrap_or_default();
        if !rom_bar {
            bars.retain(|bar| bar.index != 6);
        }
        let shown = match stand_in {
            Some(StandIn::Gpu(assumed)) => Some(assumed),
            _ => entry,
        };
        let name = match (shown, function, stand_in) {
            (Some(entry), ..) => entry.name.into(),
            (None, Some(f), _) => format!("{} {}:{}", class_name(&f.class), f.vendor, f.device).into(),
            (None, None, Some(device)) => device.name().into(),
            (None, None, None) => "unknown device".into(),
        };
        let device = HostDevice {
            id,
            host: Some(host),
            guest,
            gpu: self.is_gpu(function, source, shown),
            vga: function.is_some_and(|f| f.class.starts_with("0300"))
                || (function.is_none() && shown.is_some_and(|e| e.class.starts_with("0300"))),
            usb: function.is_some_and(|f| f.class.starts_with("0c03")),
            name,
            source,
            bars,
            form,
        };
        self.report(&device, shown, findings);
        device
    }

    fn is_gpu(
        &self,
        function: Option<&PciFunction>,
        source: Option<Source>,
        entry: Option<&catalogue::Entry>,
    ) -> bool {
        match function {
            Some(f) => {
                catalogue::is_gpu(&f.class, &f.vendor, &f.device) || (self.also_gpu)(&f.vendor, &f.device)
            }
            None => source == Some(Source::Assumed) && entry.is_some_and(catalogue::Entry::is_gpu),
        }
    }

    /// What is to be said of a device that the catalogue knows.
    fn report(&self, device: &HostDevice, entry: Option<&catalogue::Entry>, findings: &mut Vec<Finding>) {
        let Some(entry) = entry.filter(|_| device.source == Some(Source::Catalogue)) else { return };
        let (level, sure): (fn(Code, String) -> Finding, _) = match entry.confidence() {
            Confidence::High => (Finding::note, "printed by such a device"),
            Confidence::Medium => (Finding::note, "reported, but not by a listing of this very device"),
            Confidence::Low => (Finding::warning, "inferred, never seen printed"),
        };
        let text = format!(
            "BAR sizes of {} are the catalogue's ({sure}); `barfit host` on the hypervisor gives the real ones",
            device.name
        );
        // Eight GPUs of a kind are one statement.
        if !findings.iter().any(|finding| finding.text == text) {
            findings.push(level(Code::BarsFromCatalogue, text));
        }
    }

    /// What is assumed of devices that no source knows, or that it cannot be: one statement for all of them.
    pub(super) fn report_strangers(
        &self,
        devices: &[HostDevice],
        findings: &mut Vec<Finding>,
        unknown: &mut Vec<String>,
    ) {
        let places = |source: Option<Source>, gpu: bool| {
            let wanted = |device: &&HostDevice| device.source == source && (device.gpu || !gpu);
            devices.iter().filter(wanted).map(HostDevice::place).collect::<Vec<_>>().join(", ")
        };
        let assumed = places(Some(Source::Assumed), true);
        if let Some(entry) = self.assume.filter(|_| !assumed.is_empty()) {
            findings.push(Finding::warning(
                Code::BarsAssumed,
                format!("{assumed}: taken to be {}, as --assume-gpu says", entry.name),
            ));
        }
        for device in devices.iter().filter(|device| device.source == Some(Source::Assumed) && !device.gpu) {
            findings.push(Finding::warning(
                Code::BarsAssumed,
                format!("{}: taken to be a {} with small BARs", device.place(), device.name),
            ));
        }
        let strangers = places(None, false);
        if !strangers.is_empty() {
            unknown.push(format!("no source knows the BARs of {strangers}"));
            findings.push(Finding::error(
                Code::BarsUnknown,
                format!(
                    "no source knows the BARs of {strangers}; give --host FILE with a snapshot taken by `barfit host` \
                     on the hypervisor, or --assume-gpu SLUG"
                ),
            ));
        }
    }
}

/// The class of a device in a word.
fn class_name(class: &str) -> &'static str {
    match class.get(..4) {
        Some("0300") => "VGA controller",
        Some("0302") => "3D controller",
        Some("0380") => "display controller",
        Some("1200") => "processing accelerator",
        Some("0680") => "bridge device",
        Some("0403") => "audio device",
        Some("0108") => "NVMe controller",
        Some(class) if class.starts_with("02") => "network controller",
        Some(class) if class.starts_with("0c03") => "USB controller",
        _ => "device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `--assume-gpu` makes of a card passed through whole, of a lone function, and of an interface.
    #[test]
    fn only_what_may_be_a_gpu_is_assumed_to_be_one() {
        let at = |text: &str| text.parse::<PciAddress>().expect("an address");
        let rows = [
            ("0000:41:00.0", HostForm::Hostdev, true),
            ("0000:41:00.1", HostForm::Hostdev, false),
            ("0000:61:00.3", HostForm::Hostdev, true),
            ("0000:42:00.2", HostForm::Interface, false),
        ];
        let sources = Sources {
            host: Vec::new(),
            host_is: Source::HostFile,
            assume: catalogue::by_slug("h100-nvl"),
            also_gpu: &|_, _| false,
            passed: rows.iter().map(|(address, ..)| at(address)).collect(),
        };
        for (address, form, gpu) in rows {
            let device = sources.look_up(FunctionId(0), at(address), None, true, form, &mut Vec::new());
            assert_eq!(device.gpu, gpu, "{address}");
            assert_eq!(device.source, Some(Source::Assumed), "{address}");
            assert_eq!(device.bars.iter().any(|bar| bar.size.get() >= 1 << 30), gpu, "{address}");
        }
    }
}
