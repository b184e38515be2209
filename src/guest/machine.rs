//! What a machine type means for the address space: chipset, and rules by version.
//!
//! Source: QEMU hw/i386/pc_q35.c, pc_piix.c, pc.c (7.2, 10.0); libvirt keeps `pc-q35-7.2` style names. An alias
//! (`q35`, `pc`) is the newest machine of the installed QEMU.

use crate::domain::{Domain, MachineFamily};
use crate::host::Version;
use crate::layout::{Chipset, MachineRules};

/// A machine type, read.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    /// Chipset family and rules.
    pub rules: MachineRules,
    /// Named CPU models get the host's width without being asked (RHEL machine types, Ubuntu's `-hpb`).
    pub host_phys_bits: bool,
}

/// Reads the machine type of a domain; `None` for machines without PC address rules (microvm, isapc, xenfv).
pub(super) fn machine(domain: &Domain, qemu: Option<Version>) -> Option<Machine> {
    let name = domain.machine.as_deref().unwrap_or("pc");
    let chipset = match domain.family() {
        MachineFamily::Q35 => Chipset::Q35,
        MachineFamily::I440fx => Chipset::I440fx,
        MachineFamily::Other => return None,
    };
    // An alias, or a version that is not a plain number (`pc-q35-rhel9.2.0`, `pc-i440fx-bionic-hpb`), is taken as
    // new as the QEMU: distributions keep the rules below in all machine types they still ship.
    let own = name.rsplit('-').find_map(plain_version);
    let version = own.or_else(|| qemu.map(|v| (v.0, v.1)));
    let since = |major, minor| version.is_none_or(|v| v >= (major, minor));
    let program_since = |major, minor| qemu.is_none_or(|v| (v.0, v.1) >= (major, minor));
    Some(Machine {
        rules: MachineRules {
            chipset,
            checks_phys_bits: program_since(7, 1),
            relocates_around_ht_hole: program_since(7, 1) && since(7, 1),
            gigabyte_align: since(2, 0),
            aligned_dimm: since(2, 2),
        },
        host_phys_bits: name.contains("rhel") || name.ends_with("-hpb"),
    })
}

fn plain_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: Option<&str>, qemu: Option<Version>) -> Option<Machine> {
        let xml = name.map_or_else(
            || "<domain type='kvm'><memory>1</memory><os><type>hvm</type></os></domain>".to_owned(),
            |m| {
                format!(
                    "<domain type='kvm'><memory>1</memory><os><type machine='{m}'>hvm</type></os></domain>"
                )
            },
        );
        machine(&Domain::parse(xml.as_bytes()).expect("a domain"), qemu)
    }

    #[test]
    fn names_give_chipset_and_rules() {
        let rows = [
            (Some("pc-q35-7.2"), None, Some((Chipset::Q35, true, false))),
            (Some("pc-q35-6.2"), None, Some((Chipset::Q35, false, false))),
            (Some("q35"), None, Some((Chipset::Q35, true, false))),
            (Some("q35"), Some(Version(6, 2, 0)), Some((Chipset::Q35, false, false))),
            (Some("pc-i440fx-2.11"), None, Some((Chipset::I440fx, false, false))),
            (None, None, Some((Chipset::I440fx, true, false))),
            (Some("pc-q35-rhel9.2.0"), None, Some((Chipset::Q35, true, true))),
            (Some("pc-i440fx-bionic-hpb"), Some(Version(4, 2, 0)), Some((Chipset::I440fx, false, true))),
            (Some("microvm"), None, None),
        ];
        for (name, qemu, expected) in rows {
            let got =
                of(name, qemu).map(|m| (m.rules.chipset, m.rules.relocates_around_ht_hole, m.host_phys_bits));
            assert_eq!(got, expected, "{name:?} {qemu:?}");
        }
    }
}
