//! `<cpu>`: how the guest's CPU comes about, and what is said of its address width.
//!
//! Source: `virCPUDefParseXML` (libvirt 9.0 and 11.3 `src/conf/cpu_conf.c`). A width that an
//! address can have (up to 64 bits) is kept: whether it can work is not decided here. Words libvirt would not define are errors here too.

use super::error::ParseError;
use super::model::{Cpu, CpuMode, FeaturePolicy, MaxPhysAddr, MaxPhysAddrMode};
use super::read::{Node, Reader, elements, text};
use super::value::{Base, switch};

/// Bits of the widest address that x86 knows.
const WIDEST: u64 = 64;

pub(super) fn parse(reader: &Reader<'_, '_>, node: Node<'_, '_>) -> Result<Cpu, ParseError> {
    let mut cpu = Cpu {
        mode: match node.attribute("mode") {
            None | Some("custom") => CpuMode::Custom,
            Some("host-model") => CpuMode::HostModel,
            Some("host-passthrough") => CpuMode::HostPassthrough,
            Some("maximum") => CpuMode::Maximum,
            Some(other) => {
                let known = "custom, host-model, host-passthrough, maximum";
                return reader.fail_attribute(node, "mode", format!("`{other}` is none of {known}"));
            }
        },
        migratable: node.attribute("migratable").and_then(switch),
        ..Cpu::default()
    };
    for (name, child) in elements(node) {
        match name {
            "model" if cpu.model.is_none() => {
                cpu.model = Some(text(child).into_owned()).filter(|model| !model.is_empty());
                cpu.vendor_id = child.attribute("vendor_id").map(str::to_owned);
            }
            "vendor" if cpu.vendor.is_none() => cpu.vendor = Some(text(child).into_owned()),
            "feature" => cpu.features.push(feature(reader, child)?),
            "maxphysaddr" if cpu.maxphysaddr.is_none() => {
                cpu.maxphysaddr = Some(max_phys_addr(reader, child)?)
            }
            _ => {}
        }
    }
    Ok(cpu)
}

fn feature(reader: &Reader<'_, '_>, node: Node<'_, '_>) -> Result<(String, FeaturePolicy), ParseError> {
    let policy = match node.attribute("policy") {
        None | Some("require") => FeaturePolicy::Require,
        Some("force") => FeaturePolicy::Force,
        Some("optional") => FeaturePolicy::Optional,
        Some("disable") => FeaturePolicy::Disable,
        Some("forbid") => FeaturePolicy::Forbid,
        Some(other) => {
            let known = "force, require, optional, disable, forbid";
            return reader.fail_attribute(node, "policy", format!("`{other}` is none of {known}"));
        }
    };
    match node.attribute("name") {
        Some(name) if !name.is_empty() => Ok((name.to_owned(), policy)),
        _ => reader.fail(node, "a CPU feature without a name; add name="),
    }
}

fn max_phys_addr(reader: &Reader<'_, '_>, node: Node<'_, '_>) -> Result<MaxPhysAddr, ParseError> {
    let mode = match node.attribute("mode") {
        Some("passthrough") => MaxPhysAddrMode::Passthrough,
        Some("emulate") => MaxPhysAddrMode::Emulate,
        Some(other) => {
            return reader.fail_attribute(
                node,
                "mode",
                format!("`{other}` is neither passthrough nor emulate"),
            );
        }
        None => {
            return reader
                .fail(node, "`<maxphysaddr>` without mode=; libvirt refuses it, write mode='emulate'");
        }
    };
    let width = |name| match reader.number(node, name, Base::Ten, u64::MAX)? {
        Some(bits) if bits > WIDEST => reader.fail_attribute(
            node,
            name,
            format!("{bits} bits are more than an address has; QEMU takes 32 to 52"),
        ),
        bits => Ok(bits),
    };
    Ok(MaxPhysAddr { mode, bits: width("bits")?, limit: width("limit")? })
}
