//! The guest's PCI tree in the predictor's terms: every controller becomes a bridge, every device a function with
//! BARs, on the buses where libvirt puts them.

use super::Options;
use super::devices::{HostDevice, LARGE_VF, Source, Sources, by_address};
use super::emulated::{emulated, pci_id, to_bars};
use crate::domain::topology::{self, PciTree, What};
use crate::domain::{Controller, ControllerModel, Device, DeviceKind, Domain, HostForm, UnresolvedKind};
use crate::finding::{Code, Finding};
use crate::host::HostFacts;
use crate::layout::{self, Bridge, BridgeKind, Chipset, Function, FunctionId, Reserve, Role};
use crate::units::{BarKind, PciAddress};

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
    tree: &'a PciTree<'a>,
    networks_as_vf: bool,
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
    judge_addresses(domain, &tree, findings, unknown);
    let host_address = |device: &Device| match device.kind {
        DeviceKind::Host { host, .. } => Some(host),
        DeviceKind::Emulated { .. } => None,
    };
    let mut passed = Vec::with_capacity(domain.devices.len());
    passed.extend(domain.devices.iter().filter_map(host_address));
    let bus = Bus {
        functions: Vec::new(),
        devices: Vec::with_capacity(passed.len()),
        emulated: Vec::with_capacity(domain.devices.len() - passed.len()),
    };
    let sources = Sources {
        host: by_address(host),
        host_is: options.host_is,
        assume: options.assume_gpu,
        also_gpu: options.also_gpu,
        passed,
    };
    let networks_as_vf = options.networks_as_vf;
    let mut builder =
        Builder { domain, tree: &tree, networks_as_vf, sources, next: 0, bus, findings, unknown };
    let mut functions = builder.functions_of(0, false);
    let built_in = layout::built_in(chipset, || builder.next_id());
    for function in built_in {
        let same = |f: &&Function| (f.device, f.function) == (function.device, function.function);
        if functions.iter().find(same).is_none() {
            functions.push(function);
        }
    }
    functions.sort_by_key(|f| (f.device, f.function));
    builder.bus.functions = functions;
    let Builder { sources, bus, findings, unknown, .. } = builder;
    sources.report_strangers(&bus.devices, findings, unknown);
    bus
}

/// Says what had to be assumed about guest addresses, and which cannot be.
fn judge_addresses(
    domain: &Domain,
    tree: &PciTree<'_>,
    findings: &mut Vec<Finding>,
    unknown: &mut Vec<String>,
) {
    let is_written = |device: &&Device| !device.implicit && device.arg.is_none();
    let missing = domain.devices.iter().filter(is_written).filter(|device| device.address.is_none()).count();
    if missing > 0 {
        let text = match missing {
            1 => "1 device has no guest PCI address yet: assumed as libvirt will assign it".to_owned(),
            _ => format!(
                "{missing} devices have no guest PCI address yet: assumed as libvirt will assign them"
            ),
        };
        findings.push(Finding::note(Code::AddressesAssumed, text));
    }
    for problem in &tree.problems {
        let text = match problem.line {
            0 => problem.message.clone(),
            line => format!("line {line}: {}", problem.message),
        };
        if !problem.placed {
            unknown.push(text.clone());
        }
        findings.push(Finding::error(Code::AddressInvalid, text));
    }
}

impl<'a> Builder<'a> {
    fn next_id(&mut self) -> FunctionId {
        self.next += 1;
        FunctionId(self.next - 1)
    }

    /// The functions on the bus of controller `bus`. `express` says that it is the bus of a PCI Express port.
    fn functions_of(&mut self, bus: u8, express: bool) -> Vec<Function> {
        let nodes = self.tree.on_bus(bus);
        let mut functions = Vec::with_capacity(nodes.len());
        for node in nodes {
            let address = PciAddress { domain: 0, bus, slot: node.slot, function: node.function };
            let function = match node.what {
                What::BuiltIn(_) => None,
                What::Device(position) => self.device(&self.domain.devices[position], address, express),
                What::Port(index) => {
                    self.tree.controller(index).and_then(|controller| self.bridge(index, controller, address))
                }
            };
            functions.extend(function);
        }
        functions
    }

    fn bridge(&mut self, index: u8, controller: &Controller, address: PciAddress) -> Option<Function> {
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
        let express =
            matches!(controller.model, ControllerModel::RootPort | ControllerModel::SwitchDownstream);
        let children = self.functions_of(index, express);
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
            bars: to_bars(bars.iter().copied()),
            vga: false,
            usb: false,
            role: Role::Bridge(bridge),
        })
    }

    /// Whether a device is the interface of a network that may hand out a virtual function.
    fn may_be_vf(&self, device: &Device) -> bool {
        let unresolved = &self.domain.unresolved;
        unresolved.iter().any(|u| u.kind == UnresolvedKind::Network && u.line == device.line)
    }

    /// `express` says that the device is behind a PCI Express port.
    fn device(&mut self, device: &Device, address: PciAddress, express: bool) -> Option<Function> {
        let id = self.next_id();
        let (bars, vga, usb) = match &device.kind {
            DeviceKind::Host { host, rom_bar, form } => {
                let known = self.sources.look_up(id, *host, Some(address), *rom_bar, *form, self.findings);
                let answer = (known.bars.clone(), known.vga, known.usb);
                self.bus.devices.push(known);
                answer
            }
            DeviceKind::Emulated { driver, .. } if self.networks_as_vf && self.may_be_vf(device) => {
                self.bus.emulated.push((id, driver.clone()));
                (LARGE_VF.to_vec(), false, false)
            }
            DeviceKind::Emulated { driver, sizes } => match emulated(driver, sizes, express) {
                Some(emulated) if pci_id(driver).is_some_and(|(v, d)| (self.sources.also_gpu)(v, d)) => {
                    self.bus.devices.push(HostDevice {
                        id,
                        host: None,
                        guest: Some(address),
                        name: driver.clone().into(),
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
                // A mediated device: reported as such.
                None if driver.starts_with("vfio-pci") => (Vec::new(), false, false),
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
