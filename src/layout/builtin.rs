//! The PCI functions that every QEMU PC has whether anybody asked or not.
//!
//! Source: QEMU hw/i386/pc_q35.c, pc_piix.c, hw/isa/lpc_ich9.c, hw/ide/ich.c, hw/i2c/smbus_ich9.c,
//! hw/ide/piix.c; sizes read from running guests (`info pci`, QEMU 7.2).

use super::{Chipset, Function, FunctionId, Role};
use crate::units::{Bar, BarKind, Bytes};

/// The built-in functions of a machine, in bus order. `next_id` numbers them.
///
/// USB controllers, displays and network cards are not among them: QEMU adds those on request or by default,
/// libvirt always names them.
pub fn built_in(chipset: Chipset, mut next_id: impl FnMut() -> FunctionId) -> Vec<Function> {
    let io = |index, size| Bar { index, size: Bytes(size), kind: BarKind::Io };
    let mem = |index, size| Bar { index, size: Bytes(size), kind: BarKind::Mem32 };
    let functions = match chipset {
        Chipset::Q35 => vec![
            (0x00, 0, vec![]),
            (0x1f, 0, vec![]),
            (0x1f, 2, vec![io(4, 0x20), mem(5, 0x1000)]),
            (0x1f, 3, vec![io(4, 0x40)]),
        ],
        Chipset::I440fx => {
            vec![(0x00, 0, vec![]), (0x01, 0, vec![]), (0x01, 1, vec![io(4, 0x10)]), (0x01, 3, vec![])]
        }
    };
    let function = |(device, function, bars)| Function {
        id: next_id(),
        device,
        function,
        bars,
        vga: false,
        usb: false,
        role: Role::Endpoint,
    };
    functions.into_iter().map(function).collect()
}
