//! Guests as people write them, of which little can be said: what barfit says is true, and said once.

mod common;

use barfit::finding::Code;
use barfit::plan::Verdict;
use common::{answer, host};

fn guest(devices: &str, rest: &str) -> String {
    format!(
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>odd</name>\
         <memory unit='GiB'>8</memory><os><type arch='x86_64' machine='pc'>hvm</type></os>\
         <devices>{devices}</devices>{rest}</domain>"
    )
}

/// A host device on a bus that the guest does not have is passed through nonetheless.
#[test]
fn a_host_device_without_a_bus_is_no_guest_without_passthrough() {
    let device = "<hostdev mode='subsystem' type='pci'><source><address bus='0x41' slot='0'/></source>\
                  <address type='pci' bus='0x01' slot='0x03'/></hostdev>\
                  <controller type='pci' index='1' model='pci-bridge'>\
                  <address type='pci' bus='0x01' slot='0x02'/></controller>";
    let answer = answer(&guest(device, ""), &host("xeon-46-h100"));
    assert_eq!(answer.verdict, Verdict::Unknown);
    assert!(answer.findings.iter().any(|finding| finding.code == Code::AddressInvalid));
}

#[test]
fn a_mediated_device_is_explained_and_a_repeated_option_named_once() {
    let mdev = "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source><address uuid='u'/></source></hostdev>";
    let set = "<qemu:arg value='-set'/><qemu:arg value='device.hostdev0.x-igd-opregion=on'/>".repeat(3);
    let answer =
        answer(&guest(mdev, &format!("<qemu:commandline>{set}</qemu:commandline>")), &host("xeon-46-h100"));
    let texts = |code| -> Vec<&str> {
        answer.findings.iter().filter(|f| f.code == code).map(|f| f.text.as_str()).collect()
    };
    assert_eq!(texts(Code::MdevUnknown), ["line 1: mdev u: only the driver that makes it knows its BARs"]);
    assert_eq!(texts(Code::CommandLineNotUnderstood).len(), 1);
}
