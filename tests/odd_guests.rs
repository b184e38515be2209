//! Guests as people write them, of which little can be said: what barfit says is true, and said once.

mod common;

use barfit::finding::Code;
use barfit::host::HostFacts;
use barfit::plan::{Answer, Verdict};
use barfit::rewrite::rewrite;
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

#[test]
fn shared_memory_of_a_server_is_said_to_be_of_unknown_size() {
    let shmem =
        format!("<shmem name='s'><model type='ivshmem-doorbell'/><server path='/run/s'/></shmem>{GPU}");
    let answer = answer(&guest(&shmem, ""), &host("xeon-46-h100"));
    let found: Vec<_> = answer.findings.iter().filter(|f| f.text.contains("shared memory")).collect();
    assert_eq!(found.len(), 1, "{:?}", answer.findings);
    assert_eq!(found[0].code, Code::SharedMemoryUnknown);
    assert!(found[0].text.ends_with("taken to be 4 MiB"), "{}", found[0].text);
}

/// libvirt gives it index 0, and refuses it.
#[test]
fn a_controller_without_index_that_would_be_the_root_is_explained() {
    let port = format!("<controller type='pci' model='pci-bridge'/>{GPU}");
    let answer = answer(&guest(&port, ""), &host("xeon-46-h100"));
    assert_eq!(answer.verdict, Verdict::Unknown);
    let found = answer.findings.iter().find(|f| f.code == Code::AddressInvalid).expect("a finding");
    assert!(found.text.ends_with("only the root's; write index=, or the root as well"), "{}", found.text);
}

const GPU: &str =
    "<hostdev mode='subsystem' type='pci'><source><address bus='0x41' slot='0'/></source></hostdev>";

/// A BIOS guest of 1000 GiB with a GPU, which 40 bits are too few for, and this CPU.
fn wide(cpu: &str) -> String {
    guest(GPU, cpu).replace(">8</memory>", ">1000</memory>")
}

/// Each is checked again on the output: what is promised comes true, and then nothing is left to change.
fn is_kept(text: &str, host: &HostFacts) -> Answer {
    let now = answer(text, host);
    let new = rewrite(text.as_bytes(), &now.plan.changes).expect("a plan can be carried out");
    let then = answer(std::str::from_utf8(&new).expect("UTF-8"), host);
    assert_eq!((then.verdict, then.plan.changes.len()), (now.plan.verdict, 0), "{:?}", now.plan.changes);
    now
}

/// A libvirt that does not know `<maxphysaddr>` neither obeys nor refuses it.
#[test]
fn an_element_that_libvirt_drops_has_no_effect() {
    let cpu = "<cpu mode='host-model'><maxphysaddr mode='emulate' bits='52'/></cpu>";
    let old = is_kept(&wide(cpu), &host("old-libvirt-8.0"));
    assert!(old.findings.iter().any(|finding| finding.code == Code::BitsIgnored), "{:?}", old.findings);
    assert_ne!(old.verdict, Verdict::WillNotStart);
    assert_eq!(is_kept(&wide(cpu), &host("xeon-46-h100")).verdict, Verdict::WillNotStart);
}

/// `emulate` without a number turns the host's width off; with a number it would come back.
#[test]
fn a_host_cpu_of_its_own_width_keeps_it() {
    let cpu = "<cpu mode='host-passthrough'><maxphysaddr mode='emulate'/></cpu>";
    let answer = is_kept(&wide(cpu), &host("xeon-46-h100"));
    let changes: Vec<String> = answer.plan.changes.iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["-global x86_64-cpu.phys-bits=41"]);
}

#[test]
fn a_width_that_is_refused_is_replaced_where_it_stands() {
    let cpu = "<cpu mode='host-passthrough'><maxphysaddr mode='emulate' bits='64'/></cpu>";
    let answer = is_kept(&wide(cpu), &host("xeon-46-h100"));
    assert_eq!((answer.verdict, answer.plan.verdict), (Verdict::WillNotStart, Verdict::Fits));
    let changes: Vec<String> = answer.plan.changes.iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["<maxphysaddr mode='passthrough'/>"]);
}

/// No width helps a guest that libvirt refuses for an address.
#[test]
fn nothing_is_promised_of_an_impossible_address() {
    let disk = "<disk type='file'><target dev='vda' bus='virtio'/><address type='pci' bus='0x07' slot='0x1f'/></disk>";
    let text = wide("").replace("<devices>", &format!("<devices>{disk}")).replace("'pc'", "'q35'");
    let answer = is_kept(&text, &host("xeon-46-h100"));
    assert_eq!((answer.verdict, answer.plan.verdict), (Verdict::WillNotStart, Verdict::WillNotStart));
    assert_eq!(answer.plan.changes, []);
}

/// libvirt defines a guest with room for 8 EiB; QEMU does not start it.
#[test]
fn room_for_more_memory_than_there_can_be_gets_an_answer() {
    let room = "<maxMemory slots='1' unit='b'>9223372036854775807</maxMemory>";
    let answer = is_kept(&wide(room), &host("xeon-46-h100"));
    assert_eq!((answer.verdict, answer.plan.verdict), (Verdict::WillNotStart, Verdict::WillNotStart));
}
