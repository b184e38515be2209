//! The host's CPU as the kernel describes it in `/proc/cpuinfo`.
//!
//! The kernel's word is better than CPUID's here: it subtracts the address bits that memory encryption (SME, TME)
//! takes, and it drops `la57` when it runs with four page-table levels. No CPUID instruction is needed.

use std::path::Path;

use super::HostCpu;
use super::read;

/// What the first processor of `/proc/cpuinfo` says; every field unknown where there is no such file.
pub(super) fn read_cpu(root: &Path) -> HostCpu {
    // One processor takes less than 4 KiB; hundreds of them follow after an empty line.
    let one = |text: &[u8]| memchr::memmem::find(text, b"\n\n").is_some();
    let text = read::beginning(&root.join("proc/cpuinfo"), 16 << 10, one);
    text.map(|text| parse(String::from_utf8_lossy(&text).trim())).unwrap_or_default()
}

fn parse(cpuinfo: &str) -> HostCpu {
    let mut cpu = HostCpu::default();
    for line in cpuinfo.lines().take_while(|line| !line.trim().is_empty()) {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match key.trim() {
            "vendor_id" => cpu.vendor = Some(value.to_owned()),
            // "46 bits physical, 48 bits virtual"
            "address sizes" => {
                let bits = value.split_once(" bits physical").and_then(|(bits, _)| bits.parse().ok());
                cpu.phys_bits = bits.filter(|bits| (32..=52).contains(bits));
            }
            "flags" => {
                let has = |flag| Some(value.split_ascii_whitespace().any(|f| f == flag));
                cpu.pdpe1gb = has("pdpe1gb");
                cpu.la57 = has("la57");
            }
            _ => {}
        }
    }
    cpu
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_processor_counts() {
        let text = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu pdpe1gb la57 lm\n\
                    address sizes\t: 46 bits physical, 57 bits virtual\n\nprocessor\t: 1\nvendor_id\t: Other\n";
        let expected = HostCpu {
            vendor: Some("GenuineIntel".into()),
            phys_bits: Some(46),
            pdpe1gb: Some(true),
            la57: Some(true),
        };
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn what_is_missing_or_absurd_is_unknown() {
        assert_eq!(parse(""), HostCpu::default());
        assert_eq!(parse("address sizes : 99 bits physical, 48 bits virtual").phys_bits, None);
        assert_eq!(parse("address sizes : many").phys_bits, None);
        assert_eq!(parse("flags : fpu").pdpe1gb, Some(false));
    }
}
