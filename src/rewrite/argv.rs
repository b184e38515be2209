//! A plan's changes in the words of a QEMU command line, for a start whose XML nobody can change any more.
//!
//! Knows `-cpu`, `-global` and `-fw_cfg`; every other word stays as it is, in its place, whatever its encoding. CPU
//! properties go into the last `-cpu`, because that wins over everything else, or into a `-global` where there is no
//! `-cpu`. [`MaxPhysAddrValue::Emulate`](crate::plan::MaxPhysAddrValue::Emulate) becomes `phys-bits=P`, with
//! `host-phys-bits=off` where that was on; here it works for `-cpu host` too.

use std::ffi::OsString;

use super::options::{Carrier, Words};
use crate::plan::Change;

/// The command line with the changes made. Making them twice equals making them once.
#[must_use]
pub fn rewrite(argv: Vec<OsString>, changes: &[Change]) -> Vec<OsString> {
    let mut words = Words::new(argv.iter().map(|word| word.to_str().map(str::to_owned)).collect());
    words.make(changes, Carrier::CommandLine);
    let kept = argv.into_iter().zip(words.words).zip(words.removed).filter(|(_, removed)| !removed);
    let kept = kept.map(|((before, now), _)| now.map_or(before, OsString::from));
    kept.chain(words.appended.into_iter().map(OsString::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{CpuGlobal, MaxPhysAddrValue};
    use crate::units::PhysBits;

    fn bits(bits: u64) -> PhysBits {
        PhysBits::new(bits).expect("32 to 52")
    }

    fn emulate() -> Change {
        Change::SetMaxPhysAddr(MaxPhysAddrValue::Emulate(bits(43)))
    }

    fn passthrough(limit: Option<u64>) -> Change {
        Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { limit: limit.map(bits) })
    }

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn line(argv: &[OsString]) -> String {
        argv.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    /// Each row: what is asked, the command line before, and after.
    #[test]
    fn changes_in_words() {
        let limit = || Change::SetCpuGlobal(CpuGlobal::HostPhysBitsLimit(bits(43)));
        let global = || Change::SetCpuGlobal(CpuGlobal::PhysBits(bits(43)));
        let host = || Change::SetCpuGlobal(CpuGlobal::HostPhysBits);
        let feature = || Change::RequireFeature("pdpe1gb");
        let window = || Change::SetMmio64Mib(65_536);
        let rows: &[(Change, &str, &str)] = &[
            // The width, in every form that may be there.
            (emulate(), "q -cpu qemu64 -m 1", "q -cpu qemu64,phys-bits=43 -m 1"),
            (emulate(), "q -cpu X,phys-bits=43,+vmx", "q -cpu X,phys-bits=43,+vmx"),
            (emulate(), "q -cpu X,phys-bits=0x2b", "q -cpu X,phys-bits=0x2b"),
            (emulate(), "q -cpu X,phys_bits=40,vmx=on", "q -cpu X,phys-bits=43,vmx=on"),
            (emulate(), "q -cpu X,phys-bits=40,phys-bits=41", "q -cpu X,phys-bits=43"),
            (emulate(), "q --cpu Y -cpu X", "q --cpu Y -cpu X,phys-bits=43"),
            (emulate(), "q -cpu X,host-phys-bits=on", "q -cpu X,host-phys-bits=off,phys-bits=43"),
            (emulate(), "q -cpu X,+host-phys-bits", "q -cpu X,host-phys-bits=off,phys-bits=43"),
            (emulate(), "q -cpu X,host-phys-bits=no", "q -cpu X,host-phys-bits=no,phys-bits=43"),
            (
                emulate(),
                "q -cpu host,migratable=on",
                "q -cpu host,migratable=on,phys-bits=43,host-phys-bits=off",
            ),
            (emulate(), "q -cpu max", "q -cpu max,phys-bits=43,host-phys-bits=off"),
            (
                emulate(),
                "q -machine pc-q35-rhel9.4.0,usb=off -cpu X",
                "q -machine pc-q35-rhel9.4.0,usb=off -cpu X,phys-bits=43,host-phys-bits=off",
            ),
            (
                emulate(),
                "q -M usb=off,type=ubuntu-hpb -cpu X",
                "q -M usb=off,type=ubuntu-hpb -cpu X,phys-bits=43,host-phys-bits=off",
            ),
            (emulate(), "q -machine q35", "q -machine q35 -global x86_64-cpu.phys-bits=43"),
            (
                emulate(),
                "q -cpu X -global x86_64-cpu.host-phys-bits=on",
                "q -cpu X,phys-bits=43,host-phys-bits=off -global x86_64-cpu.host-phys-bits=on",
            ),
            (
                emulate(),
                "q -cpu X -global x86_64-cpu.phys-bits=43",
                "q -cpu X -global x86_64-cpu.phys-bits=43",
            ),
            (
                emulate(),
                "q -cpu X -global cpu.phys-bits=40 -global x86_64-cpu.phys-bits=43",
                "q -cpu X -global cpu.phys-bits=40 -global x86_64-cpu.phys-bits=43",
            ),
            (
                emulate(),
                "q -cpu X -global EPYC-x86_64-cpu.phys-bits=43",
                "q -cpu X,phys-bits=43 -global EPYC-x86_64-cpu.phys-bits=43",
            ),
            // The host's width.
            (passthrough(None), "q -cpu X", "q -cpu X,host-phys-bits=on"),
            (
                passthrough(None),
                "q -cpu host,host-phys-bits=on,host-phys-bits-limit=40",
                "q -cpu host,host-phys-bits=on,host-phys-bits-limit=0",
            ),
            (passthrough(Some(43)), "q -cpu X", "q -cpu X,host-phys-bits=on,host-phys-bits-limit=43"),
            (
                passthrough(Some(43)),
                "q -cpu X,host-phys-bits=off,host-phys-bits-limit=44",
                "q -cpu X,host-phys-bits=on,host-phys-bits-limit=43",
            ),
            // What old libvirt needs as `-global`, by the word that wins.
            (global(), "q -cpu X,phys-bits=40", "q -cpu X,phys-bits=43"),
            (host(), "q -cpu X", "q -cpu X,host-phys-bits=on"),
            (limit(), "q -cpu host", "q -cpu host,host-phys-bits-limit=43"),
            // Features.
            (feature(), "q -cpu X", "q -cpu X,pdpe1gb=on"),
            (feature(), "q -cpu X,pdpe1gb", "q -cpu X,pdpe1gb"),
            (feature(), "q -cpu X,+pdpe1gb,pdpe1gb=off", "q -cpu X,+pdpe1gb,pdpe1gb=off"),
            (feature(), "q -cpu X,-pdpe1gb,pdpe1gb=on,vmx=on", "q -cpu X,pdpe1gb=on,vmx=on"),
            (feature(), "q -cpu X,pdpe1gb=off", "q -cpu X,pdpe1gb=on"),
            (feature(), "q -cpu pdpe1gb,-vmx", "q -cpu pdpe1gb,-vmx,pdpe1gb=on"),
            // OVMF's window.
            (window(), "q -m 1", "q -m 1 -fw_cfg name=opt/ovmf/X-PciMmio64Mb,string=65536"),
            (
                window(),
                "q --fw_cfg opt/ovmf/X-PciMmio64Mb,string=32768 -m 1",
                "q --fw_cfg opt/ovmf/X-PciMmio64Mb,string=65536 -m 1",
            ),
            (
                window(),
                "q -fw_cfg opt/ovmf/X-PciMmio64Mb,string=065536",
                "q -fw_cfg opt/ovmf/X-PciMmio64Mb,string=065536",
            ),
            (
                window(),
                "q -fw_cfg opt/a,string=1,,name=opt/ovmf/X-PciMmio64Mb -m 1",
                "q -fw_cfg opt/a,string=1,,name=opt/ovmf/X-PciMmio64Mb -m 1 -fw_cfg name=opt/ovmf/X-PciMmio64Mb,string=65536",
            ),
            (
                window(),
                "q -fw_cfg file=/a,,b,string=1,name=opt/ovmf/X-PciMmio64Mb -m 1 -fw_cfg opt/ovmf/X-PciMmio64Mb,gen_id=x",
                "q -fw_cfg string=65536,name=opt/ovmf/X-PciMmio64Mb -m 1",
            ),
            (Change::RemoveMmio64, "q -fw_cfg opt/ovmf/X-PciMmio64Mb,file=/a -m 1", "q -m 1"),
            (Change::RemoveMmio64, "q -fw_cfg opt/b,string=1", "q -fw_cfg opt/b,string=1"),
            // An option without its value is left to QEMU's own complaint.
            (window(), "q -fw_cfg", "q -fw_cfg -fw_cfg name=opt/ovmf/X-PciMmio64Mb,string=65536"),
        ];
        for (change, before, after) in rows {
            let once = rewrite(words(before), std::slice::from_ref(change));
            assert_eq!(line(&once), *after, "{change:?} of {before}");
            let twice = rewrite(once.clone(), std::slice::from_ref(change));
            assert_eq!(twice, once, "{change:?} twice, of {before}");
        }
    }

    #[test]
    fn words_of_any_encoding_stay() {
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(b"guest=caf\xe9".to_vec());
        let argv = vec!["q".into(), "-name".into(), odd.clone(), "-cpu".into(), odd.clone()];
        let new = rewrite(argv.clone(), &[emulate()]);
        assert_eq!(new[..5], argv);
        assert_eq!(rewrite(argv.clone(), &[]), argv);
    }
}
