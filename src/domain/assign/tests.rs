//! One pass is enough where it says so: everything stands where two passes put it.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::{Assigned, Assignment};
use crate::domain::{Controller, Domain};
use crate::units::PciAddress;

/// Devices, each with a place for its address; `#` is a number that no other has.
const DEVICES: [&str; 16] = [
    "<hostdev type='pci'><source><address bus='0x41'/></source>@</hostdev>",
    "<interface type='hostdev'><source><address type='pci' bus='0x42'/></source>@</interface>",
    "<interface type='bridge'><model type='virtio'/>@</interface>",
    "<interface type='bridge'><model type='e1000'/>@</interface>",
    "<disk><target dev='vdb' bus='virtio'/>@</disk>",
    "<video><model type='vga'/>@</video>",
    "<video><model type='virtio'/>@</video>",
    "<sound model='ich9'>@</sound>",
    "<sound model='ac97'>@</sound>",
    "<rng model='virtio'>@</rng>",
    "<controller type='usb' index='#' model='qemu-xhci'>@</controller>",
    "<controller type='usb' index='#' model='ich9-ehci1'>@</controller>",
    "<controller type='usb' index='#' model='ich9-uhci1'>@</controller>",
    "<controller type='usb' index='#' model='piix3-uhci'>@</controller>",
    "<controller type='ide' index='#'>@</controller>",
    "<controller type='sata' index='#'>@</controller>",
];

/// Models of ports and bridges: those of one kind of machine, those of the other, and all.
const MODELS: [&[&str]; 3] = [
    &["pcie-root-port"],
    &["pci-bridge"],
    &[
        "pcie-root-port",
        "pci-bridge",
        "pcie-to-pci-bridge",
        "dmi-to-pci-bridge",
        "pcie-switch-upstream-port",
        "pcie-switch-downstream-port",
        "pcie-expander-bus",
        "pci-expander-bus",
    ],
];

/// What follows `-device`.
const ARGS: [&str; 5] =
    ["nvme", "nvme,addr=5", "pcie-root-port,id=own", "nvme,bus=own", "nvme,bus=pci.1,addr=0"];

prop_compose! {
    fn any_address()(
        bus in select(&[0, 0, 0, 1, 2, 3, 4, 9, 255][..]),
        slot in select(&[0, 0, 1, 2, 5, 0x1d, 0x1e, 0x1f][..]),
        function in select(&[0, 0, 0, 1, 2, 7][..]),
    ) -> PciAddress {
        PciAddress { domain: 0, bus, slot, function }
    }
}

/// An address, in few of many cases, as libvirt writes it.
fn few_addresses() -> impl Strategy<Value = String> {
    let element = |at: Option<PciAddress>| match at {
        Some(PciAddress { bus, slot, function, .. }) => {
            format!("<address type='pci' bus='{bus}' slot='{slot}' function='{function}'/>")
        }
        None => String::new(),
    };
    prop::option::weighted(0.03, any_address()).prop_map(element)
}

prop_compose! {
    fn any_domain()(
        machine in select(&["q35", "q35", "pc", "microvm"][..]),
        models in select(&MODELS[..]),
    )(
        machine in Just(machine),
        ports in prop::collection::vec((select(models), few_addresses()), 0..12),
        gap in select(&[0, 0, 1, 3][..]),
        devices in prop::collection::vec((select(&DEVICES[..]), few_addresses()), 0..20),
        args in prop::collection::vec(select(&ARGS[..]), 0..3),
    ) -> Domain {
        let ports = ports.iter().enumerate().map(|(n, (model, address))| {
            let index = if n < 3 { n + 1 } else { n + 1 + gap };
            format!("<controller type='pci' index='{index}' model='{model}'>{address}</controller>")
        });
        let devices = devices.iter().enumerate().map(|(n, (device, address))| {
            device.replace('#', &n.to_string()).replace('@', address)
        });
        let args = args.iter().map(|arg| format!("<q:arg value='-device'/><q:arg value='{arg}'/>"));
        let text = format!(
            "<domain type='kvm' xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>
             <memory unit='GiB'>8</memory><os><type arch='x86_64' machine='{machine}'>hvm</type></os>
             <devices>{}</devices><q:commandline>{}</q:commandline></domain>",
            ports.chain(devices).collect::<String>(),
            args.collect::<String>(),
        );
        Domain::parse(text.as_bytes()).expect("a domain")
    }
}

/// The domain with all addresses, as libvirt writes it down when it defines it.
fn defined(domain: &Domain) -> Domain {
    let Assigned { controllers, devices, .. } = Assigned::new(domain);
    let mut defined = domain.clone();
    for (device, at) in defined.devices.iter_mut().zip(devices) {
        device.address = at;
    }
    let written = controllers.iter().filter(|(_, standing)| standing.controller.arg.is_none());
    let written = written.map(|(_, standing)| Controller {
        address: standing.at,
        line: 1,
        ..standing.controller.clone()
    });
    let of_args = domain.controllers.iter().filter(|controller| controller.arg.is_some()).cloned();
    defined.controllers = written.chain(of_args).collect();
    defined
}

proptest! {
    #[test]
    fn one_pass_is_enough_where_it_says_so(
        domain in any_domain(),
        define in any::<bool>(),
        edits in prop::collection::vec((any::<bool>(), any::<Index>(), prop::option::of(any_address())), 0..3),
    ) {
        let mut domain = if define { defined(&domain) } else { domain };
        for (of_port, index, at) in edits {
            if of_port && !domain.controllers.is_empty() {
                index.get_mut(&mut domain.controllers).address = at;
            } else if !domain.devices.is_empty() {
                index.get_mut(&mut domain.devices).address = at;
            }
        }
        prop_assert_eq!(Assigned::new(&domain), Assigned::by(&domain, |_| false));
    }

    #[test]
    fn one_pass_is_enough_for_what_libvirt_has_defined(domain in any_domain()) {
        let defined = defined(&domain);
        let mut work = Assignment::new(&defined);
        work.take_places(true);
        prop_assert!(work.is_settled() || !Assigned::new(&domain).problems.is_empty());
    }
}

/// The slot that libvirt keeps for a bridge may take a bus that nothing else needs.
#[test]
fn one_pass_is_not_enough_where_there_is_no_room_for_a_bridge() {
    let rng = |slot: u8| {
        format!("<rng model='virtio'><address type='pci' bus='0' slot='{slot}' function='0'/></rng>")
    };
    let with = |devices: String| {
        let text = format!(
            "<domain type='kvm'><memory unit='GiB'>8</memory><os><type machine='pc'>hvm</type></os><devices>
             <controller type='pci' index='1' model='pcie-root-port'>
             <address type='pci' bus='0' slot='2' function='1'/></controller>
             <memballoon model='none'/>{devices}</devices></domain>"
        );
        Domain::parse(text.as_bytes()).expect("a domain")
    };
    for (last, is_settled) in [(30, true), (31, false)] {
        let domain = with((2..=last).map(rng).collect());
        let mut work = Assignment::new(&domain);
        work.take_places(true);
        assert_eq!(work.is_settled(), is_settled, "{:?}", work.problems);
        assert_eq!(Assigned::new(&domain), Assigned::by(&domain, |_| false));
    }
}
