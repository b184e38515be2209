//! Memory in every form a domain can say it, brought down to what QEMU gets.
//!
//! Rules: NUMA cells override `<memory>`, memory devices count into the total and are taken off it again
//! (`virDomainDefPostParseMemory`, libvirt 9.0 `src/conf/domain_postparse.c`); at start every cell, or the whole, is
//! rounded up to MiB and every memory device to 2 MiB (`qemuDomainAlignMemorySizes`, `src/qemu/qemu_domain.c`).
//! `<currentMemory>` is a balloon's target and has no say.

use super::error::ParseError;
use super::model::{MaxMemory, Memory};
use super::read::{Node, Reader, child, elements};
use super::value::{self, Base, round_up};
use crate::units::{Bytes, MIB, PhysBits};

/// The pieces, gathered from all over the domain.
#[derive(Default)]
pub(super) struct MemoryParts {
    total: Option<Bytes>,
    max: Option<Bytes>,
    slots: u32,
    /// Sum of the cells, each rounded up to MiB; `None` without cells, or when they say no memory.
    cells: Option<Bytes>,
    /// Sum of memory devices as written: what libvirt takes off `<memory>`.
    devices: Bytes,
    /// The same, as QEMU gets them.
    plugged: Bytes,
    sgx_epc: Bytes,
}

impl MemoryParts {
    /// `<memory>`.
    pub(super) fn total(&mut self, reader: &Reader<'_, '_>, node: Node<'_, '_>) -> Result<(), ParseError> {
        if self.total.is_none() {
            self.total = reader.memory(node)?;
        }
        Ok(())
    }

    /// `<maxMemory slots=>`.
    pub(super) fn max(&mut self, reader: &Reader<'_, '_>, node: Node<'_, '_>) -> Result<(), ParseError> {
        if self.max.is_none() {
            self.max = reader.max_memory(node)?;
            let slots = reader.number(node, "slots", Base::Ten, u64::from(u32::MAX))?.unwrap_or(0);
            self.slots = u32::try_from(slots).unwrap_or(u32::MAX);
        }
        Ok(())
    }

    /// `<numa>` of `<cpu>`.
    pub(super) fn cells(&mut self, reader: &Reader<'_, '_>, numa: Node<'_, '_>) -> Result<(), ParseError> {
        for (_, cell) in elements(numa).filter(|&(name, _)| name == "cell") {
            let Some(text) = cell.attribute("memory").filter(|text| !text.is_empty()) else { continue };
            let bytes = match value::memory(text, cell.attribute("unit")) {
                Ok(bytes) => bytes,
                Err(message) => return reader.fail_attribute(cell, "memory", message),
            };
            let sum = add(reader, cell, self.cells.unwrap_or_default(), bytes, MIB)?;
            self.cells = Some(sum).filter(|sum| *sum != Bytes::ZERO);
        }
        Ok(())
    }

    /// `<memory model=>` in `<devices>`.
    pub(super) fn device(&mut self, reader: &Reader<'_, '_>, node: Node<'_, '_>) -> Result<(), ParseError> {
        let size = child(node, "target").and_then(|target| child(target, "size"));
        let Some(size) = size else {
            return reader.fail(node, "a memory device without `<target><size>`; add its size");
        };
        let Some(bytes) = reader.memory(size)? else {
            return reader.fail(size, "a memory device of no size; write its size");
        };
        self.devices = add(reader, node, self.devices, bytes, 1)?;
        let sum =
            if node.attribute("model") == Some("sgx-epc") { &mut self.sgx_epc } else { &mut self.plugged };
        *sum = add(reader, node, *sum, bytes, 2 * MIB)?;
        Ok(())
    }

    /// What QEMU gets.
    pub(super) fn finish(&self, reader: &Reader<'_, '_>, root: Node<'_, '_>) -> Result<Memory, ParseError> {
        let boot = match (self.cells, self.total) {
            (Some(cells), _) => cells,
            (None, None) => return reader.fail(root, "there is no `<memory>` (or no number in it); add it"),
            (None, Some(Bytes::ZERO)) => {
                return reader.fail(root, "`<memory>` is 0; write how much the guest has");
            }
            (None, Some(total)) => match total.get().checked_sub(self.devices.get()) {
                Some(rest) if rest > 0 => add(reader, root, Bytes::ZERO, Bytes(rest), MIB)?,
                _ => {
                    return reader.fail(
                        root,
                        format!("`<memory>` is {total}, and its memory devices alone take {}", self.devices),
                    );
                }
            },
        };
        let max = match self.max {
            Some(max) => {
                let size = round_up(max, MIB).unwrap_or(max);
                Some(MaxMemory { size, slots: self.slots })
            }
            None => None,
        };
        Ok(Memory { boot, max, sgx_epc: self.sgx_epc, plugged: self.plugged })
    }
}

/// The sum, with `more` rounded up to `step` first.
fn add(
    reader: &Reader<'_, '_>,
    node: Node<'_, '_>,
    sum: Bytes,
    more: Bytes,
    step: u64,
) -> Result<Bytes, ParseError> {
    let sum = round_up(more, step).and_then(|more| sum.checked_add(more));
    match sum {
        Some(sum) if sum.get() < PhysBits::MAX.limit() => Ok(sum),
        _ => reader.fail(node, "the memory adds up to more than any guest can have"),
    }
}
