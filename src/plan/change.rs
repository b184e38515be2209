//! The vocabulary of a plan: the changes that barfit can make to a domain or to a QEMU command line.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::units::PhysBits;

/// One change to a guest's definition. A plan holds at most one of each kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// `<maxphysaddr>` becomes exactly this; `<cpu>` is created where it is missing.
    SetMaxPhysAddr(MaxPhysAddrValue),
    /// `<feature policy='require' name='…'/>` in `<cpu>`, correcting the policy of one that is there.
    RequireFeature(&'static str),
    /// fw_cfg `opt/ovmf/X-PciMmio64Mb` becomes this many MiB: in place where the entry exists, else inserted.
    SetMmio64Mib(u32),
    /// The fw_cfg entry goes: it forces a window that is too small.
    RemoveMmio64,
    /// QEMU `-global x86_64-cpu.PROPERTY=VALUE` in `<qemu:commandline>`, corrected in place where it is there: for
    /// libvirt before 8.7, which has no `<maxphysaddr>`.
    SetCpuGlobal(CpuGlobal),
}

impl Change {
    /// Whether it is about the guest's width.
    pub(super) fn sets_width(&self) -> bool {
        matches!(self, Change::SetMaxPhysAddr(_) | Change::SetCpuGlobal(_))
    }
}

/// A change as it is written down: a feature's name is any text there.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Written {
    SetMaxPhysAddr(MaxPhysAddrValue),
    RequireFeature(String),
    SetMmio64Mib(u32),
    RemoveMmio64,
    SetCpuGlobal(CpuGlobal),
}

impl<'de> Deserialize<'de> for Change {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Change, D::Error> {
        Ok(match Written::deserialize(d)? {
            Written::SetMaxPhysAddr(value) => Change::SetMaxPhysAddr(value),
            Written::RequireFeature(name) if name == "pdpe1gb" => Change::RequireFeature("pdpe1gb"),
            Written::RequireFeature(name) => {
                return Err(serde::de::Error::custom(format_args!(
                    "`{name}` is no CPU feature that a plan requires"
                )));
            }
            Written::SetMmio64Mib(mib) => Change::SetMmio64Mib(mib),
            Written::RemoveMmio64 => Change::RemoveMmio64,
            Written::SetCpuGlobal(global) => Change::SetCpuGlobal(global),
        })
    }
}

/// A `<maxphysaddr>` that libvirt accepts.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaxPhysAddrValue {
    /// `mode='emulate' bits='P'`.
    Emulate(PhysBits),
    /// `mode='passthrough'`, with `limit='P'` where libvirt knows it (9.3 and later).
    Passthrough {
        /// Upper bound.
        limit: Option<PhysBits>,
    },
}

/// A CPU property by `-global`.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuGlobal {
    /// `x86_64-cpu.phys-bits=P`: named models.
    PhysBits(PhysBits),
    /// `x86_64-cpu.host-phys-bits=on`: named models, the host's width.
    HostPhysBits,
    /// `x86_64-cpu.host-phys-bits-limit=P`: host-passthrough.
    HostPhysBitsLimit(PhysBits),
}

/// As it stands in the domain: `<maxphysaddr mode='emulate' bits='43'/>`.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::SetMaxPhysAddr(MaxPhysAddrValue::Emulate(bits)) => {
                write!(f, "<maxphysaddr mode='emulate' bits='{bits}'/>")
            }
            Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { limit: None }) => {
                f.write_str("<maxphysaddr mode='passthrough'/>")
            }
            Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { limit: Some(bits) }) => {
                write!(f, "<maxphysaddr mode='passthrough' limit='{bits}'/>")
            }
            Change::RequireFeature(name) => write!(f, "<feature policy='require' name='{name}'/>"),
            Change::SetMmio64Mib(mib) => write!(f, "-fw_cfg name=opt/ovmf/X-PciMmio64Mb,string={mib}"),
            Change::RemoveMmio64 => f.write_str("no -fw_cfg opt/ovmf/X-PciMmio64Mb"),
            Change::SetCpuGlobal(CpuGlobal::PhysBits(bits)) => {
                write!(f, "-global x86_64-cpu.phys-bits={bits}")
            }
            Change::SetCpuGlobal(CpuGlobal::HostPhysBits) => {
                f.write_str("-global x86_64-cpu.host-phys-bits=on")
            }
            Change::SetCpuGlobal(CpuGlobal::HostPhysBitsLimit(bits)) => {
                write!(f, "-global x86_64-cpu.host-phys-bits-limit={bits}")
            }
        }
    }
}
