//! `<controller type='pci'>`: the buses of the guest.
//!
//! Source: `virDomainControllerDefParseXML` (libvirt 9.0 `src/conf/domain_conf.c`). `index=` is what `bus=` of a guest
//! address refers to; it is not the bus number the guest will see.

use super::device::{alias, guest_address};
use super::error::ParseError;
use super::model::{Controller, ControllerModel, PortReserve};
use super::read::{Node, Reader, child, child_attribute, text};
use super::value::{self, Base, switch};
use crate::units::{Bytes, KIB};

/// The controller, of this index, and `<pcihole64>` of a root.
pub(super) fn parse(
    reader: &mut Reader<'_, '_>,
    node: Node<'_, '_>,
    index: u32,
) -> Result<(Controller, Option<Bytes>), ParseError> {
    let model = model(node.attribute("model").unwrap_or_default());
    let target = child(node, "target");
    let attribute = |name| match target {
        Some(target) => reader.number(target, name, Base::Any, u64::from(u32::MAX)),
        None => Ok(None),
    };
    let bus_nr = match attribute("busNr")? {
        Some(number) => match u8::try_from(number) {
            Ok(number) => Some(number),
            Err(_) => {
                return reader.fail(node, format!("busNr='{number}' is out of range; buses end at 255"));
            }
        },
        None => None,
    };
    let address = child(node, "address").filter(|a| a.attribute("type").is_none_or(|kind| kind == "pci"));
    let controller = Controller {
        index,
        after: None,
        address: match address {
            Some(address) => guest_address(reader, address)?,
            None => None,
        },
        hotplug: target.and_then(|t| t.attribute("hotplug")).and_then(switch).unwrap_or(true),
        bus_nr,
        hardware: child_attribute(node, "model", "name").map(str::to_owned),
        reserve: PortReserve {
            mem: attribute("memReserve")?.and_then(|kib| kib.checked_mul(KIB)).map(Bytes),
            ..PortReserve::default()
        },
        alias: alias(node),
        line: reader.line(node),
        arg: None,
        bus: None,
        model,
    };
    let is_root = matches!(controller.model, ControllerModel::PcieRoot | ControllerModel::PciRoot);
    let hole = if is_root { hole(reader, node)? } else { None };
    Ok((controller, hole))
}

fn model(name: &str) -> ControllerModel {
    match name {
        "pcie-root" => ControllerModel::PcieRoot,
        "pci-root" => ControllerModel::PciRoot,
        "pcie-root-port" => ControllerModel::RootPort,
        "pcie-switch-upstream-port" => ControllerModel::SwitchUpstream,
        "pcie-switch-downstream-port" => ControllerModel::SwitchDownstream,
        "pcie-to-pci-bridge" => ControllerModel::PcieToPciBridge,
        "pci-bridge" => ControllerModel::PciBridge,
        "dmi-to-pci-bridge" => ControllerModel::DmiToPciBridge,
        "pcie-expander-bus" => ControllerModel::PcieExpander,
        "pci-expander-bus" => ControllerModel::PciExpander,
        other => ControllerModel::Other(other.to_owned()),
    }
}

/// `<pcihole64 unit='KiB'>`: rounded up to KiB; 0 is a value.
fn hole(reader: &Reader<'_, '_>, node: Node<'_, '_>) -> Result<Option<Bytes>, ParseError> {
    let Some(hole) = child(node, "pcihole64") else { return Ok(None) };
    let text = text(hole);
    if text.is_empty() {
        return Ok(None);
    }
    let size = value::size(&text, hole.attribute("unit"), KIB)
        .and_then(|bytes| value::round_up(bytes, KIB).ok_or_else(|| format!("`{text}` is too large")));
    match size {
        Ok(bytes) => Ok(Some(bytes)),
        Err(message) => reader.fail(hole, format!("`<pcihole64>`: {message}")),
    }
}
