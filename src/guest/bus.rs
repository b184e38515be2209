//! The guest's PCI tree in the predictor's terms: every controller becomes a bridge, every device a function with
//! BARs, on the buses where libvirt puts them.

use super::Options;
use super::devices::{HostDevice, Source, Sources};
use super::emulated::{emulated, pci_id};
use crate::domain::topology::{self, Node, What};
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

struct Builder<'a> {
    domain: &'a Domain,
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
    let tree = topology::assign(domain);
    findings.extend(tree.problems.iter().map(|problem| {
        Finding::error(Code::AddressInvalid, format!("line {}: {}", problem.line, problem.message))
    }));
    if domain
        .devices
        .iter()
        .any(|device| device.address.is_none() && matches!(device.kind, DeviceKind::Host { .. }))
    {
        findings.push(Finding::note(
            Code::AddressesAssumed,
            "guest addresses are missing: taken to be those that libvirt gives out at define",
        ));
    }
    let sources =
        Sources { host, host_is: options.host_is, assume: options.assume_gpu, also_gpu: options.also_gpu };
    let bus = Bus { functions: Vec::new(), devices: Vec::new(), emulated: Vec::new() };
    let mut builder = Builder { domain, sources, next: 0, bus, findings, unknown };
    let mut functions = builder.functions_of(&tree.root, 0, false);
    for function in layout::built_in(chipset, || builder.next_id()) {
        let same = |f: &Function| (f.device, f.function) == (function.device, function.function);
        if !functions.iter().any(same) {
            functions.push(function);
        }
    }
    functions.sort_by_key(|f| (f.device, f.function));
    builder.bus.functions = functions;
    builder.bus
}

impl Builder<'_> {
    fn next_id(&mut self) -> FunctionId {
        self.next += 1;
        FunctionId(self.next - 1)
    }

    /// The functions on the bus of a controller. `express` says that it leads there by a PCI Express link.
    fn functions_of(&mut self, nodes: &[Node], bus: u8, express: bool) -> Vec<Function> {
        let domain = self.domain;
        let mut functions = Vec::with_capacity(nodes.len());
        for node in nodes {
            let address = PciAddress { domain: 0, bus, slot: node.slot, function: node.function };
            functions.extend(match &node.what {
                // The predictor's own table has them, with their BARs.
                What::BuiltIn(_) => None,
                What::Port(port) => self.bridge(&port.controller, &port.children, address),
                What::Device(at) => {
                    domain.devices.get(*at).and_then(|device| self.device(device, address, express))
                }
            });
        }
        functions
    }

    fn bridge(&mut self, controller: &Controller, behind: &[Node], address: PciAddress) -> Option<Function> {
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
        let bus = u8::try_from(controller.index).unwrap_or(u8::MAX);
        let express =
            matches!(kind, BridgeKind::RootPort | BridgeKind::Ioh3420 | BridgeKind::SwitchDownstream);
        let children = self.functions_of(behind, bus, express);
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

    fn device(&mut self, device: &Device, address: PciAddress, express: bool) -> Option<Function> {
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
            DeviceKind::Emulated { driver, sizes } => match emulated(driver, sizes, express) {
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
