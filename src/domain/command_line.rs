//! `<qemu:commandline>`: words for QEMU beside those of libvirt.
use super::device::Devices;
use super::model::CommandLine;
use super::read::Node;

/// Adds the words of one `<qemu:commandline>`.
pub(super) fn collect(node: Node<'_, '_>, args: &mut Vec<String>) {
    for arg in node.children().filter(|c| c.is_element() && c.tag_name().name() == "arg") {
        args.extend(arg.attribute("value").map(str::to_owned));
    }
}
/// What the words mean.
pub(super) fn parse(args: Vec<String>, _found: &mut Devices) -> CommandLine {
    CommandLine { args, ..CommandLine::default() }
}
