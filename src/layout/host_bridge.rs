//! How edk2's host bridge driver hands out address space to root buses: first fit, type by type, the one with
//! the largest alignment first, and what it remembers between two attempts.
//!
//! Source: edk2 MdeModulePkg/Bus/Pci/PciHostBridgeDxe/PciHostBridge.c (`NotifyPhase`, `AllocateResource`,
//! `SubmitResources`). Two habits of that code decide what becomes of a guest that does not fit:
//! a type that failed stays submitted with length 0 and fails for ever after, even when no device asks for it
//! any more; and memory above 4 GiB that does not fit is tried below 4 GiB.

use crate::units::align_up;

/// Types of address space, in the driver's order. The numbers index arrays.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Io = 0,
    Mem32 = 1,
    PMem32 = 2,
    Mem64 = 3,
    PMem64 = 4,
}

impl Kind {
    pub(super) const ALL: [Kind; 5] = [Kind::Io, Kind::Mem32, Kind::PMem32, Kind::Mem64, Kind::PMem64];
}

/// One value for each type of address space.
pub(super) type PerKind<T> = [T; 5];

/// What a root bus asks for of one type.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Bytes, not 0.
    pub(super) len: u64,
    /// Alignment minus one.
    pub(super) mask: u64,
}

/// How one type of one root bus fared.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Not asked for.
    None,
    /// Asked for and not (yet) given.
    Submitted,
    /// Given, from this address on.
    Allocated(u64),
}

impl Status {
    /// Where it begins, if it was given.
    pub(super) fn base(self) -> Option<u64> {
        match self {
            Status::Allocated(base) => Some(base),
            Status::None | Status::Submitted => None,
        }
    }
}

#[derive(Copy, Clone, Debug)]
struct Slot {
    len: u64,
    mask: u64,
    status: Status,
}

/// A range that can be given out.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Pool {
    /// First address.
    pub(super) base: u64,
    /// First address past the range, and past what the firmware's memory map knows of it.
    pub(super) end: u64,
}

/// The address space that root buses share.
#[derive(Debug)]
pub(super) struct HostBridge {
    io: Pool,
    low: Pool,
    high: Option<Pool>,
    /// One row for each root bus.
    slots: Vec<PerKind<Slot>>,
    /// Memory given out: first address and first address past it.
    memory: Vec<(u64, u64)>,
    /// I/O ports given out.
    ports: Vec<(u64, u64)>,
}

/// A request that the driver refuses outright: 4 GiB or more of 32-bit memory.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Invalid;

impl HostBridge {
    pub(super) fn new(roots: usize, io: Pool, low: Pool, high: Option<Pool>) -> HostBridge {
        let empty = Slot { len: 0, mask: 0, status: Status::None };
        HostBridge { io, low, high, slots: vec![[empty; 5]; roots], memory: Vec::new(), ports: Vec::new() }
    }

    /// Takes the requests of one root bus.
    pub(super) fn submit(&mut self, root: usize, requests: &PerKind<Option<Request>>) -> Result<(), Invalid> {
        let too_large = |kind: Kind| requests[kind as usize].is_some_and(|request| request.len >> 32 != 0);
        if too_large(Kind::Mem32) || too_large(Kind::PMem32) {
            return Err(Invalid);
        }
        for (slot, request) in self.slots[root].iter_mut().zip(requests) {
            if let Some(request) = request {
                *slot = Slot { len: request.len, mask: request.mask, status: Status::Submitted };
            }
        }
        Ok(())
    }

    /// Gives every root bus what it asked for, as far as there is room. Whether all was given.
    pub(super) fn allocate(&mut self) -> bool {
        let mut complete = true;
        for root in 0..self.slots.len() {
            let mut handled = [false; 5];
            for turn in 0..handled.len() {
                let slots = &self.slots[root];
                if slots[turn].status == Status::None {
                    handled[turn] = true;
                    continue;
                }
                // The largest alignment first, the last of equals. A type not asked for takes part with the
                // alignment it once had, as long as its own turn has not come.
                let waiting = Kind::ALL.into_iter().filter(|kind| !handled[*kind as usize]);
                let Some(kind) = waiting.max_by_key(|kind| slots[*kind as usize].mask) else { continue };
                handled[kind as usize] = true;
                match self.find(kind, slots[kind as usize]) {
                    Some(base) => self.slots[root][kind as usize].status = Status::Allocated(base),
                    None => complete = false,
                }
            }
        }
        for slot in self.slots.iter_mut().flatten() {
            if !matches!(slot.status, Status::Allocated(_)) {
                slot.len = 0;
            }
        }
        complete
    }

    /// How each type of one root bus fared.
    pub(super) fn statuses(&self, root: usize) -> impl Iterator<Item = Status> {
        self.slots[root].iter().map(|slot| slot.status)
    }

    /// Takes everything back before the next attempt. What was not given stays asked for.
    pub(super) fn free(&mut self) {
        for slot in self.slots.iter_mut().flatten() {
            if matches!(slot.status, Status::Allocated(_)) {
                slot.status = Status::None;
                slot.len = 0;
            }
        }
        self.memory.clear();
        self.ports.clear();
    }

    fn find(&mut self, kind: Kind, slot: Slot) -> Option<u64> {
        match kind {
            Kind::Io => first_fit(self.io, slot, 15, &mut self.ports),
            Kind::Mem32 | Kind::PMem32 => first_fit(self.low, slot, 31, &mut self.memory),
            Kind::Mem64 | Kind::PMem64 => self
                .high
                .and_then(|high| first_fit(high, slot, 63, &mut self.memory))
                .or_else(|| first_fit(self.low, slot, 31, &mut self.memory)),
        }
    }
}

/// First aligned address in the pool where nothing lies yet; takes it.
fn first_fit(pool: Pool, slot: Slot, most_bits: u32, taken: &mut Vec<(u64, u64)>) -> Option<u64> {
    let align = slot.mask.checked_add(1)?;
    let step = 1u64 << align.trailing_zeros().min(most_bits);
    let mut base = align_up(pool.base, align)?;
    loop {
        let end = base.checked_add(slot.len)?;
        // The memory map refuses ranges of length 0.
        if slot.len == 0 || end > pool.end {
            return None;
        }
        let Some(conflict) = taken.iter().find(|(first, past)| base < *past && *first < end) else {
            taken.push((base, end));
            return Some(base);
        };
        base = align_up(conflict.1, step)?;
    }
}
