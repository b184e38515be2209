//! `<maxphysaddr>` and `<feature>` in `<cpu>`.
//!
//! Rules of libvirt 9.0 (`src/conf/cpu_conf.c`), measured: the first of several `<maxphysaddr>` counts; `bits` belongs
//! to `emulate` alone and `limit` to `passthrough` alone, and either is refused with the other; features of a custom
//! CPU without a `<model>` are refused, and the model it has then is `qemu64`; a `<cpu>` with nothing but
//! `<maxphysaddr>` keeps the model that a domain without `<cpu>` has.

use roxmltree::Node;

use super::place::{
    Fragment, NewChild, attribute, insert_children, remove_attribute, set_attribute, set_value, value_of,
};
use super::xml::{Edits, child, children};
use crate::domain::ParseError;
use crate::plan::{Change, MaxPhysAddrValue};

/// What libvirt prints before `<maxphysaddr>`.
const BEFORE_MAXPHYSADDR: &[&str] =
    &["arch", "model", "vendor", "microcode", "signature", "counter", "topology", "cache"];
/// What libvirt prints before `<feature>`.
const BEFORE_FEATURE: &[&str] =
    &["arch", "model", "vendor", "microcode", "signature", "counter", "topology", "cache", "maxphysaddr"];

/// Collects the edits that the changes ask for in `<cpu>`.
pub(super) fn edit<'a>(edits: &mut Edits<'a>, changes: &[Change]) -> Result<(), ParseError> {
    let cpu = child(edits.root, "cpu");
    let mut new = Vec::new();
    // In libvirt's order, whatever the order of the plan.
    for change in changes {
        if let Change::SetMaxPhysAddr(value) = change {
            maxphysaddr(edits, cpu, *value, &mut new)?;
        }
    }
    for change in changes {
        if let Change::RequireFeature(name) = change {
            feature(edits, cpu, name, &mut new)?;
        }
    }
    match cpu {
        Some(cpu) => insert_children(edits.text, cpu, &new, &edits.step, &mut edits.splices)?,
        None if new.is_empty() => {}
        None => {
            let children = new.into_iter().map(|(_, fragment)| fragment).collect();
            let fragment =
                Fragment::Parent { open: "<cpu>".to_owned(), children, close: "</cpu>".to_owned() };
            edits.in_root.push((before_clock(edits.root), fragment));
        }
    }
    Ok(())
}

fn maxphysaddr<'a>(
    edits: &mut Edits<'a>,
    cpu: Option<Node<'a, 'a>>,
    value: MaxPhysAddrValue,
    new: &mut Vec<NewChild<'a, 'a>>,
) -> Result<(), ParseError> {
    let (mode, bits, limit) = match value {
        MaxPhysAddrValue::Emulate(bits) => ("emulate", Some(bits.get()), None),
        MaxPhysAddrValue::Passthrough { limit } => ("passthrough", None, limit.map(|limit| limit.get())),
    };
    let numbers = [("bits", bits), ("limit", limit)];
    let Some(element) = cpu.and_then(|cpu| child(cpu, "maxphysaddr")) else {
        let q = edits.quote;
        let numbers = numbers
            .iter()
            .filter_map(|(name, number)| number.map(|number| format!(" {name}={q}{number}{q}")));
        let markup = format!("<maxphysaddr mode={q}{mode}{q}{}/>", numbers.collect::<String>());
        let after = cpu.and_then(|cpu| last_of(cpu, BEFORE_MAXPHYSADDR));
        new.push((after, Fragment::Leaf(markup)));
        return Ok(());
    };
    let (text, splices) = (edits.text, &mut edits.splices);
    if value_of(element, "mode") != Some(mode) {
        set_attribute(text, element, "mode", mode, splices)?;
    }
    for (name, number) in numbers {
        match number {
            None => remove_attribute(text, element, name, splices),
            Some(number) if is_number(value_of(element, name), number) => {}
            Some(number) => set_attribute(text, element, name, &number.to_string(), splices)?,
        }
    }
    Ok(())
}

/// Whether an attribute says this number, leading zeros or not.
fn is_number(value: Option<&str>, number: u8) -> bool {
    value.is_some_and(|value| {
        value.bytes().all(|b| b.is_ascii_digit()) && value.parse::<u64>() == Ok(u64::from(number))
    })
}

fn feature<'a>(
    edits: &mut Edits<'a>,
    cpu: Option<Node<'a, 'a>>,
    name: &str,
    new: &mut Vec<NewChild<'a, 'a>>,
) -> Result<(), ParseError> {
    let mut found = false;
    for feature in cpu.iter().flat_map(|cpu| children(*cpu, &["feature"])) {
        if value_of(feature, "name") != Some(name) {
            continue;
        }
        found = true;
        match attribute(feature, "policy") {
            // Without a policy libvirt requires the feature; `force` gives it on any host.
            None => {}
            Some(policy) if matches!(policy.value(), "require" | "force") => {}
            Some(policy) => set_value(edits.text, policy, "require", &mut edits.splices),
        }
    }
    if found {
        return Ok(());
    }
    let q = edits.quote;
    let custom = cpu.is_none_or(|cpu| matches!(value_of(cpu, "mode"), None | Some("custom")));
    if custom && cpu.is_none_or(|cpu| child(cpu, "model").is_none()) {
        new.insert(0, (None, Fragment::Leaf(format!("<model fallback={q}forbid{q}>qemu64</model>"))));
    }
    let after = cpu.and_then(|cpu| last_of(cpu, &["feature"]).or_else(|| last_of(cpu, BEFORE_FEATURE)));
    new.push((after, Fragment::Leaf(format!("<feature policy={q}require{q} name={q}{name}{q}/>"))));
    Ok(())
}

/// The child after which libvirt would print `<cpu>`; `None` for the beginning.
fn before_clock<'a>(root: Node<'a, 'a>) -> Option<Node<'a, 'a>> {
    const AFTER_CPU: &[&str] =
        &["clock", "on_poweroff", "on_reboot", "on_crash", "on_lockfailure", "pm", "perf", "devices"];
    if let Some(before) = last_of(root, &["os", "idmap", "features"]) {
        return Some(before);
    }
    match children(root, AFTER_CPU).next() {
        Some(after) => after.prev_sibling_element(),
        None => root.last_element_child(),
    }
}

fn last_of<'a>(parent: Node<'a, 'a>, names: &[&str]) -> Option<Node<'a, 'a>> {
    children(parent, names).last()
}
