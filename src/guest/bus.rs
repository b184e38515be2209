//! The guest's PCI tree in the predictor's terms: every controller becomes a bridge, every device a function with
//! BARs, on the buses where libvirt puts them.

use super::Options;
use super::devices::{HostDevice, Source, Sources};
use super::emulated::{emulated, pci_id};
use crate::domain::{Controller, ControllerModel, Device, DeviceKind, Domain, HostForm};
use crate::finding::{Code, Finding};
use crate::host::HostFacts;
use crate::layout::{self, Bridge, BridgeKind, Chipset, Function, FunctionId, Reserve, Role};
use crate::units::{Bar, BarKind, Bytes, PciAddress};

/// A tree and what its functions are.
pub(super) struct Bus {
    /// Functions on the root bus.
    pub(super) functions: Vec<Function>,
    /// Passed-through functions.
    pub(super) devices: Vec<HostDevice>,
    /// Emulated functions.
    pub(super) emulated: Vec<(FunctionId, String)>,
}

/// Something with an address, by controller index.
#[derive(Clone, Copy)]
enum Item<'d> {
    Controller(&'d Controller),
    Device(&'d Device),
}

struct Builder<'a> {
    placed: Vec<(PciAddress, Item<'a>)>,
    sources: Sources<'a>,
    next: u32,
    bus: Bus,
    findings: &'a mut Vec<Finding>,
    unknown: &'a mut Vec<String>,
}

/// Builds the tree.
pub(super) fn build<'a>(
    domain: &'a Domain,
    chipset: Chipset,
    host: &'a HostFacts,
    options: &Options<'a>,
    findings: &'a mut Vec<Finding>,
    unknown: &'a mut Vec<String>,
) -> Bus {
    let mut placed: Vec<(PciAddress, Item<'_>)> = Vec::new();
    placed.extend(domain.controllers.iter().filter_map(|c| Some((c.address?, Item::Controller(c)))));
    placed.extend(domain.devices.iter().filter_map(|d| Some((d.address?, Item::Device(d)))));
    placed.sort_by_key(|(address, _)| *address);
    let sources =
        Sources { host, host_is: options.host_is, assume: options.assume_gpu, also_gpu: options.also_gpu };
    let bus = Bus { functions: Vec::new(), devices: Vec::new(), emulated: Vec::new() };
    let mut builder = Builder { placed, sources, next: 0, bus, findings, unknown };
    let mut functions = builder.functions_of(0, chipset == Chipset::Q35, 0);
    let built_in = layout::built_in(chipset, || builder.next_id());
    for function in built_in {
        let same = |f: &&Function| (f.device, f.function) == (function.device, function.function);
        if functions.iter().find(same).is_none() {
            functions.push(function);
        }
    }
    functions.sort_by_key(|f| (f.device, f.function));
    builder.bus.functions = functions;
    builder.bus
}

/// Deeper nesting than any machine has; a cycle of controllers ends here.
const DEEPEST: u32 = 32;

impl<'a> Builder<'a> {
    fn next_id(&mut self) -> FunctionId {
        self.next += 1;
        FunctionId(self.next - 1)
    }

    /// The functions on the bus of controller `index`.
    fn functions_of(&mut self, index: u8, root: bool, depth: u32) -> Vec<Function> {
        let from = self.placed.partition_point(|(address, _)| address.bus < index);
        let to = self.placed.partition_point(|(address, _)| address.bus <= index);
        let mut functions = Vec::with_capacity(to - from);
        for at in from..to {
            let (address, item) = self.placed[at];
            let function = match item {
                Item::Controller(controller) => self.bridge(controller, address, depth),
                Item::Device(device) => self.device(device, address, !root && index != 0),
            };
            functions.extend(function);
        }
        functions
    }

    fn bridge(&mut self, controller: &Controller, address: PciAddress, depth: u32) -> Option<Function> {
        let (kind, bars): (_, &[(u8, u64, BarKind)]) = match &controller.model {
            ControllerModel::RootPort if controller.hardware.as_deref() == Some("ioh3420") => {
                (BridgeKind::Ioh3420, &[])
            }
            ControllerModel::RootPort => (BridgeKind::RootPort, &[(0, 4096, BarKind::Mem32)]),
            ControllerModel::SwitchUpstream => (BridgeKind::SwitchUpstream, &[]),
            ControllerModel::SwitchDownstream => (BridgeKind::SwitchDownstream, &[]),
            ControllerModel::PcieToPciBridge => (BridgeKind::PciePciBridge, &[(0, 256, BarKind::Mem64)]),
            ControllerModel::PciBridge => (BridgeKind::PciBridge, &[(0, 256, BarKind::Mem64)]),
            ControllerModel::DmiToPciBridge => (BridgeKind::DmiToPci, &[]),
            ControllerModel::PcieExpander | ControllerModel::PciExpander => {
                (BridgeKind::Expander { bus_nr: controller.bus_nr.unwrap_or_default() }, &[])
            }
            ControllerModel::PcieRoot | ControllerModel::PciRoot => return None,
            ControllerModel::Other(model) => {
                self.findings.push(Finding::warning(
                    Code::DeviceUnknown,
                    format!("PCI controller model `{model}` is not known; what is behind it is left out"),
                ));
                return None;
            }
        };
        let id = self.next_id();
        let index = u8::try_from(controller.index).ok().filter(|_| depth < DEEPEST);
        let children = index.map(|index| self.functions_of(index, false, depth + 1)).unwrap_or_default();
        let reserve = Reserve {
            io: controller.reserve.io,
            mem: controller.reserve.mem,
            pref32: controller.reserve.pref32,
            pref64: controller.reserve.pref64,
        };
        let bridge = Bridge { kind, hotplug: controller.hotplug, reserve, children };
        Some(Function {
            id,
            device: address.slot,
            function: address.function,
            bars: to_bars(bars),
            vga: false,
            usb: false,
            role: Role::Bridge(bridge),
        })
    }

    /// `behind_port` says that the device is not on the root bus.
    fn device(&mut self, device: &Device, address: PciAddress, behind_port: bool) -> Option<Function> {
        let id = self.next_id();
        let (bars, vga, usb) = match &device.kind {
            DeviceKind::Host { host, rom_bar, form } => {
                let known = self.sources.look_up(id, *host, Some(address), *rom_bar, *form, self.findings);
                if known.source.is_none() {
                    self.unknown.push(format!("the BARs of {} are in no source", known.place()));
                }
                let answer = (known.bars.clone(), known.vga, known.usb);
                self.bus.devices.push(known);
                answer
            }
            DeviceKind::Emulated { driver, sizes } => match emulated(driver, sizes, behind_port) {
                Some(emulated) if pci_id(driver).is_some_and(|(v, d)| (self.sources.also_gpu)(v, d)) => {
                    self.bus.devices.push(HostDevice {
                        id,
                        host: None,
                        guest: Some(address),
                        name: driver.clone(),
                        gpu: true,
                        vga: emulated.vga,
                        usb: emulated.usb,
                        source: Some(Source::Emulated),
                        bars: emulated.bars.clone(),
                        form: HostForm::CommandLine,
                    });
                    (emulated.bars, emulated.vga, emulated.usb)
                }
                Some(emulated) => {
                    self.bus.emulated.push((id, driver.clone()));
                    (emulated.bars, emulated.vga, emulated.usb)
                }
                None => {
                    self.findings.push(Finding::note(
                        Code::DeviceUnknown,
                        format!(
                            "line {}: the BARs of `{driver}` are not known; taken to be small",
                            device.line
                        ),
                    ));
                    (Vec::new(), false, false)
                }
            },
        };
        let role = Role::Endpoint;
        Some(Function { id, device: address.slot, function: address.function, bars, vga, usb, role })
    }
}

fn to_bars(bars: &[(u8, u64, BarKind)]) -> Vec<Bar> {
    bars.iter().map(|&(index, size, kind)| Bar { index, size: Bytes(size), kind }).collect()
}
