//! The BARs of passed-through devices, and where they are known from.
//!
//! In this order: the host's facts (sysfs or a host file), the catalogue by PCI id, the device named with
//! `--assume-gpu`. A device in none of them is unknown, and so is the guest's layout.

use crate::catalogue::{self, Confidence};
use crate::domain::HostForm;
use crate::finding::{Code, Finding};
use crate::host::{HostFacts, PciFunction};
use crate::layout::FunctionId;
use crate::units::{Bar, PciAddress};

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
    pub name: String,
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
    /// What the host has.
    pub host: &'a HostFacts,
    /// Where `host` itself comes from.
    pub host_is: Source,
    /// The device of `--assume-gpu`.
    pub assume: Option<&'static catalogue::Entry>,
    /// Ids that the policy counts as GPUs.
    pub also_gpu: &'a dyn Fn(&str, &str) -> bool,
}

impl Sources<'_> {
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
        let function = self.host.pci.iter().find(|function| function.address == host);
        let entry = function.and_then(|f| catalogue::by_id(&f.vendor, &f.device));
        let known = function.and_then(|f| f.bars.clone()).map(|bars| (self.host_is, bars));
        let by_id = || entry.map(|entry| (Source::Catalogue, entry.bars()));
        let assumed = || self.assume.map(|entry| (Source::Assumed, entry.bars()));
        let found = known.or_else(by_id).or_else(assumed);
        let source = found.as_ref().map(|(source, _)| *source);
        let mut bars = found.map(|(_, bars)| bars).unwrap_or_default();
        if !rom_bar {
            bars.retain(|bar| bar.index != 6);
        }
        let shown = match (source, entry, self.assume) {
            (Some(Source::Assumed), _, Some(entry)) => Some(entry),
            _ => entry,
        };
        let name = match (shown, function) {
            (Some(entry), _) => entry.name.to_owned(),
            (None, Some(f)) => format!("{} {}:{}", class_name(&f.class), f.vendor, f.device),
            (None, None) => "unknown device".to_owned(),
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
        let places = |source: Option<Source>| {
            let places = devices.iter().filter(|device| device.source == source).map(HostDevice::place);
            places.collect::<Vec<_>>().join(", ")
        };
        let assumed = places(Some(Source::Assumed));
        if let Some(entry) = self.assume.filter(|_| !assumed.is_empty()) {
            findings.push(Finding::warning(
                Code::BarsAssumed,
                format!("{assumed}: taken to be {}, as --assume-gpu says", entry.name),
            ));
        }
        let strangers = places(None);
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
