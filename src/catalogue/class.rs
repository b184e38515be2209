//! Which PCI functions are GPUs, by class code; only what the ids below take out is not one after all.
//!
//! Knows the classes that GPUs were seen with: VGA (0300: GeForce, Arc, workstation cards), 3D controller (0302: A100,
//! H100, B200), other display controller (0380: MI210, Flex), processing accelerator (1200: MI300X, Gaudi). The
//! ids that a policy adds are not its business.

/// Display controllers of the base board (BMC) and of hypervisors: display class, but no one's GPU.
const NOT_GPUS: [(u32, Option<u32>); 11] = [
    (0x1a03, Some(0x2000)), // ASPEED BMC
    (0x102b, None),         // Matrox: today only inside BMCs
    (0x19e5, Some(0x1711)), // Huawei iBMC
    (0x1234, Some(0x1111)), // QEMU standard VGA, bochs-display
    (0x1b36, Some(0x0100)), // QXL
    (0x1af4, Some(0x1050)), // virtio-gpu
    (0x1013, Some(0x00b8)), // Cirrus
    (0x15ad, Some(0x0405)), // VMware SVGA
    (0x80ee, Some(0xbeef)), // VirtualBox
    (0x1414, Some(0x5353)), // Hyper-V
    (0x1002, Some(0x515e)), // ES1000 on old server boards
];

/// Whether a function of this class (six hex digits) and these ids (four each) is a GPU.
pub fn is_gpu(class: &str, vendor: &str, device: &str) -> bool {
    let display = matches!(class.get(..4), Some("0300" | "0302" | "0380" | "1200"));
    let (vendor, device) = (super::number(vendor), super::number(device));
    display && !NOT_GPUS.iter().any(|&(v, d)| vendor == Some(v) && (d.is_none() || d == device))
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
