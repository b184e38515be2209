//! Which PCI functions are GPUs, by class code; only what the ids below take out is not one after all.
//!
//! Knows the classes that GPUs were seen with: VGA (0300: GeForce, Arc, workstation cards), 3D controller (0302: A100,
//! H100, B200), other display controller (0380: MI210, Flex), processing accelerator (1200: MI300X, Gaudi). The
//! ids that a policy adds are not its business.

/// Display controllers of the base board (BMC) and of hypervisors: display class, but no one's GPU.
const NOT_GPUS: [(&str, Option<&str>); 11] = [
    ("1a03", Some("2000")), // ASPEED BMC
    ("102b", None),         // Matrox: today only inside BMCs
    ("19e5", Some("1711")), // Huawei iBMC
    ("1234", Some("1111")), // QEMU standard VGA, bochs-display
    ("1b36", Some("0100")), // QXL
    ("1af4", Some("1050")), // virtio-gpu
    ("1013", Some("00b8")), // Cirrus
    ("15ad", Some("0405")), // VMware SVGA
    ("80ee", Some("beef")), // VirtualBox
    ("1414", Some("5353")), // Hyper-V
    ("1002", Some("515e")), // ES1000 on old server boards
];

/// Whether a function of this class (six hex digits) and these ids (four each) is a GPU.
pub fn is_gpu(class: &str, vendor: &str, device: &str) -> bool {
    let display = ["0300", "0302", "0380", "1200"].iter().any(|c| class.starts_with(c));
    display
        && !NOT_GPUS
            .iter()
            .any(|(v, d)| vendor.eq_ignore_ascii_case(v) && d.is_none_or(|d| device.eq_ignore_ascii_case(d)))
}

#[cfg(test)]
mod tests {
    use super::is_gpu;

    #[test]
    fn classes_decide_and_ids_except() {
        for (class, vendor, device, gpu) in [
            ("030200", "10de", "2321", true),
            ("030000", "10de", "2684", true),
            ("038000", "1002", "740f", true),
            ("120000", "1002", "74a1", true),
            ("068000", "10de", "22a3", false),
            ("040300", "10de", "1aef", false),
            ("020000", "15b3", "1021", false),
            ("030000", "1a03", "2000", false),
            ("030000", "102B", "0536", false),
            ("030000", "1234", "1111", false),
            ("030000", "1b36", "0100", false),
            ("ff0000", "1b36", "0005", false),
            ("", "", "", false),
        ] {
            assert_eq!(is_gpu(class, vendor, device), gpu, "{class} {vendor}:{device}");
        }
    }
}
