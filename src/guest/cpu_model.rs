//! What QEMU's named CPU models tell the guest: vendor, long mode, 1 GiB pages, 5-level paging.
//!
//! Read from QEMU 7.2 itself (QMP `query-cpu-model-expansion` of every definition); models newer than that from
//! target/i386/cpu.c of QEMU 10.0. A version or variant suffix (`-v3`, `-IBRS`, `-noTSX`) changes none of these.

use std::iter;

use crate::layout::CpuVendor::{self, Amd, Intel, Other};

/// A named model.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct CpuModel {
    /// Vendor the model says it is; the guest sees it under TCG only.
    pub vendor: CpuVendor,
    /// 64-bit.
    pub long_mode: bool,
    /// 1 GiB pages.
    pub gib_pages: bool,
    /// 5-level paging.
    pub la57: bool,
}

const fn model(vendor: CpuVendor, long_mode: bool, gib_pages: bool, la57: bool) -> CpuModel {
    CpuModel { vendor, long_mode, gib_pages, la57 }
}

/// Families that share the same answers, by the name in front of any suffix.
const MODELS: &[(&[&str], CpuModel)] = &[
    (
        &["486", "coreduo", "kvm32", "n270", "pentium", "pentium2", "pentium3", "qemu32"],
        model(Intel, false, false, false),
    ),
    (&["athlon"], model(Amd, false, false, false)),
    (
        &[
            "Conroe",
            "Penryn",
            "Nehalem",
            "Westmere",
            "SandyBridge",
            "IvyBridge",
            "Haswell",
            "Broadwell",
            "Skylake-Client",
            "core2duo",
            "kvm64",
        ],
        model(Intel, true, false, false),
    ),
    (
        &["Skylake-Server", "Cascadelake-Server", "Cooperlake", "Denverton", "Snowridge", "KnightsMill"],
        model(Intel, true, true, false),
    ),
    (
        &[
            "Icelake-Server",
            "SapphireRapids",
            "GraniteRapids",
            "DiamondRapids",
            "SierraForest",
            "ClearwaterForest",
        ],
        model(Intel, true, true, true),
    ),
    (&["Opteron_G1", "Opteron_G2", "Opteron_G3", "qemu64"], model(Amd, true, false, false)),
    (
        &["Opteron_G4", "Opteron_G5", "phenom", "EPYC", "EPYC-Rome", "EPYC-Milan"],
        model(Amd, true, true, false),
    ),
    (&["EPYC-Genoa", "EPYC-Turin"], model(Amd, true, true, true)),
    (&["Dhyana"], model(Other, true, true, false)),
    (&["YongFeng"], model(Other, true, false, false)),
];

/// The model of this name, with any suffix (`Skylake-Server-noTSX-IBRS`, `EPYC-Milan-v2`); `None` for one not known.
pub(super) fn cpu_model(name: &str) -> Option<CpuModel> {
    let shorter = name.rmatch_indices('-').map(|(end, _)| &name[..end]);
    // `EPYC-Genoa` is no variant of `EPYC`: the longest name wins.
    iter::once(name).chain(shorter).find_map(|family| {
        let (_, model) = MODELS.iter().find(|(names, _)| names.contains(&family))?;
        Some(*model)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_do_not_hide_the_family() {
        for (name, expected) in [
            ("Skylake-Server", Some(model(Intel, true, true, false))),
            ("Skylake-Server-noTSX-IBRS", Some(model(Intel, true, true, false))),
            ("Skylake-Client-v4", Some(model(Intel, true, false, false))),
            ("EPYC", Some(model(Amd, true, true, false))),
            ("EPYC-IBPB", Some(model(Amd, true, true, false))),
            ("EPYC-Genoa-v1", Some(model(Amd, true, true, true))),
            ("Icelake-Server-v6", Some(model(Intel, true, true, true))),
            ("qemu32", Some(model(Intel, false, false, false))),
            ("pentium3-v1", Some(model(Intel, false, false, false))),
            ("qemu64", Some(model(Amd, true, false, false))),
            ("power9", None),
            ("-", None),
            ("EPYC-", Some(model(Amd, true, true, false))),
            ("EPYCx-v1", None),
        ] {
            assert_eq!(cpu_model(name), expected, "{name}");
        }
    }
}
