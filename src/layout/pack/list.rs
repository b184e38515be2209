//! What lies in a window of a bus, front to back: the driver's sorted lists, and what they come to.
//!
//! The driver inserts by falling alignment. Among equals a node goes first, but behind those that stick out farther:
//! whose length has a larger rest beyond a multiple of the alignment. A node without a rest always goes first.
//! Entries of one alignment are a group, which is added up by itself: where the first of them begins is aligned like all
//! of them, so that what they come to does not depend on it.

use std::cmp::{Ordering, Reverse};
use std::ops::Range;

use super::merging::Merging;
use crate::layout::host_bridge::{Kind, PerKind};
use crate::units::{KIB, MIB, align_up};

/// Granularity of a bridge's memory windows.
const BRIDGE_MEM_MASK: u64 = MIB - 1;
/// Granularity of a bridge's I/O window.
const BRIDGE_IO_MASK: u64 = 4 * KIB - 1;

/// How much a node asks for. With a length of 0 it stands in no list.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) len: u64,
    /// Alignment minus one.
    pub(super) mask: u64,
    /// The largest BAR or padding in it that may be given up.
    pub(super) largest: Largest,
}

impl Size {
    pub(super) const NOTHING: Size = Size { len: 0, mask: 0, largest: Largest::NONE };

    /// What is left of the length beyond a multiple of the alignment.
    fn rest(&self) -> u64 {
        self.len & self.mask
    }
}

/// A node that may be given up, and its length; of length 0: there is none.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Largest {
    pub(super) len: u64,
    pub(super) node: usize,
}

impl Largest {
    pub(super) const NONE: Largest = Largest { len: 0, node: 0 };

    /// The larger of this one and a later one; the later of equals.
    pub(super) fn or(self, later: Largest) -> Largest {
        if later.len != 0 && later.len >= self.len { later } else { self }
    }
}

/// A node in a list, with all that the order depends on.
#[derive(Copy, Clone, Debug)]
pub(super) struct Entry {
    pub(super) node: usize,
    pub(super) size: Size,
    pub(super) kind: Kind,
    pub(super) padding: bool,
    /// When it is inserted among entries of the same alignment.
    pub(super) turn: u64,
    /// What its group comes to, from the first to this one.
    pub(super) sums: Sums,
}

/// What the order of a list follows from.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
enum Order {
    /// Among equals the last inserted is first: no two of them have different rests.
    #[default]
    LastFirst,
    /// Among equals the one with the largest rest is first, then the last inserted: all have one, or none.
    RestFirst,
    /// Neither holds, and the order is only to be had by inserting one after the other.
    Inserted,
}

/// What lies in a window, front to back.
#[derive(Clone, Debug, Default)]
pub(super) struct List {
    entries: Vec<Entry>,
    /// The groups of entries, in their order.
    groups: Vec<Group>,
    order: Order,
    /// Has changed since it was last laid out.
    stale: bool,
}

/// Entries of the same alignment, one after the other.
#[derive(Copy, Clone, Debug)]
struct Group {
    mask: u64,
    count: usize,
    /// So many of the first are added up.
    fresh: usize,
}

/// What entries of the same alignment come to.
#[derive(Copy, Clone, Debug)]
pub(super) struct Sums {
    /// To the end of the last.
    used: u64,
    /// The same of the padding among them.
    padded: u64,
    largest: Largest,
    /// One has no rest.
    whole: bool,
    /// The rest of the first that has one.
    rest: u64,
    /// The entries can be ordered like that.
    last_first: bool,
    rest_first: bool,
}

impl List {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether it has changed since it was last asked for.
    pub(super) fn take_stale(&mut self) -> bool {
        std::mem::take(&mut self.stale)
    }

    /// Takes everything out. What [`List::push`] then puts in has no order before [`List::sort`].
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.order = Order::LastFirst;
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Brings the entries into the order of their keys, and groups them.
    pub(super) fn sort(&mut self) {
        let by_rest = self.order == Order::RestFirst;
        self.entries.sort_unstable_by_key(|entry| Reverse((entry.size.mask, key(by_rest, entry))));
        self.group();
    }

    fn group(&mut self) {
        self.stale = true;
        self.groups.clear();
        for equals in self.entries.chunk_by(|a, b| a.size.mask == b.size.mask) {
            let (mask, count) = (equals[0].size.mask, equals.len());
            self.groups.push(Group { mask, count, fresh: 0 });
        }
    }

    /// The group of an alignment and where it begins, or where it would stand.
    fn find(&self, mask: u64) -> (usize, usize) {
        let (mut at, mut start) = (0, 0);
        while let Some(group) = self.groups.get(at).filter(|group| group.mask > mask) {
            (at, start) = (at + 1, start + group.count);
        }
        (at, start)
    }

    /// The place of an entry among those of a group.
    fn place(&self, equals: Range<usize>, entry: &Entry) -> usize {
        let by_rest = self.order == Order::RestFirst;
        let own = key(by_rest, entry);
        equals.start + self.entries[equals].partition_point(|other| key(by_rest, other) > own)
    }

    /// Puts an entry in the place of the one that its node had with another size.
    pub(super) fn replace(&mut self, before: Size, entry: Entry) {
        self.stale = true;
        if before.len == 0 {
            if entry.size.len != 0 {
                let at = self.enter(&entry, 0);
                self.entries.insert(at, entry);
            }
            return;
        }
        let (group, start) = self.find(before.mask);
        let equals = start..start + self.groups[group].count;
        let was = match self.order {
            Order::Inserted => {
                let own = self.entries[equals].iter().position(|other| other.node == entry.node);
                start + own.unwrap_or_default()
            }
            _ => self.place(equals, &Entry { size: before, ..entry }),
        };
        let same_place = self.order != Order::RestFirst || before.rest() == entry.size.rest();
        if entry.size.len != 0 && entry.size.mask == before.mask && same_place {
            self.groups[group].changed(was - start);
            self.entries[was] = entry;
            return;
        }
        self.groups[group].count -= 1;
        self.groups[group].changed(was - start);
        if self.groups[group].count == 0 {
            self.groups.remove(group);
        }
        if entry.size.len == 0 {
            self.entries.remove(was);
            return;
        }
        // Only what lies between the two places moves.
        match entry.size.mask.cmp(&before.mask) {
            Ordering::Greater => {
                let now = self.enter(&entry, 0);
                self.entries[now..=was].rotate_right(1);
                self.entries[now] = entry;
            }
            Ordering::Less => {
                let now = self.enter(&entry, 1) - 1;
                self.entries[was..=now].rotate_left(1);
                self.entries[now] = entry;
            }
            Ordering::Equal => {
                self.entries.remove(was);
                let now = self.enter(&entry, 0);
                self.entries.insert(now, entry);
            }
        }
    }

    /// Counts an entry among those of its alignment, and says where it goes; so many before it are not counted any more.
    fn enter(&mut self, entry: &Entry, uncounted: usize) -> usize {
        let (group, start) = self.find(entry.size.mask);
        if self.groups.get(group).is_none_or(|group| group.mask != entry.size.mask) {
            self.groups.insert(group, Group { mask: entry.size.mask, count: 0, fresh: 0 });
        }
        let start = start + uncounted;
        let now = self.place(start..start + self.groups[group].count, entry);
        self.groups[group].count += 1;
        self.groups[group].changed(now - start);
        now
    }

    /// The entries with where each begins, from where the window does.
    pub(super) fn offsets(&self) -> impl Iterator<Item = (u64, &Entry)> {
        let (mut end, mut rest) = (0, &self.entries[..]);
        self.groups.iter().flat_map(move |group| {
            let equals = rest.split_off(..group.count).unwrap_or_default();
            let first = align_up(end, group.mask + 1).unwrap_or(u64::MAX);
            if let Some(last) = equals.iter().rfind(|entry| !entry.padding) {
                end = first.saturating_add(last.sums.used);
            }
            let used = equals.iter().filter(|entry| !entry.padding);
            used.map(move |entry| {
                (first.saturating_add(entry.sums.used).saturating_sub(entry.size.len), entry)
            })
        })
    }

    /// Brings the entries into the driver's order, and says how large a window they need.
    pub(super) fn lay_out(&mut self, window: Kind, merging: &Merging) -> Size {
        let mut total = self.total(window);
        let order = match self.order {
            order @ Order::LastFirst if total.last_first => order,
            order @ Order::RestFirst if total.rest_first => order,
            _ if total.last_first => Order::LastFirst,
            _ if total.rest_first => Order::RestFirst,
            _ => Order::Inserted,
        };
        if order != self.order || order == Order::Inserted {
            self.order = order;
            if order == Order::Inserted {
                self.insert_all(window, merging);
            } else {
                self.sort();
            }
            self.stale = false;
            total = self.total(window);
        }
        let granularity = if window == Kind::Io { BRIDGE_IO_MASK } else { BRIDGE_MEM_MASK };
        let round_up = |len: u64| align_up(len, granularity + 1).unwrap_or(u64::MAX);
        let padded = if window == Kind::Io { total.padded } else { round_up(total.padded) };
        let mask = self.groups.first().map_or(granularity, |first| granularity.max(first.mask));
        Size { len: round_up(total.used).max(padded), mask, largest: total.largest }
    }

    fn insert_all(&mut self, window: Kind, merging: &Merging) {
        self.entries = inserted(std::mem::take(&mut self.entries), window, merging);
        self.group();
    }

    /// What all entries come to.
    fn total(&mut self, window: Kind) -> Sums {
        let mut total = Sums::NOTHING;
        let mut rest = &mut self.entries[..];
        for group in &mut self.groups {
            let equals = rest.split_off_mut(..group.count).unwrap_or_default();
            let sums = group.add_up(equals, window);
            let mask = group.mask;
            let follow = |end: u64, len: u64| match len {
                0 => end,
                _ => align_up(end, mask + 1).unwrap_or(u64::MAX).saturating_add(len),
            };
            total.used = follow(total.used, sums.used);
            total.padded = match window {
                Kind::Io if sums.padded != 0 => sums.padded,
                _ => follow(total.padded, sums.padded),
            };
            total.largest = total.largest.or(sums.largest);
            total.last_first &= sums.last_first;
            total.rest_first &= sums.rest_first;
        }
        total
    }
}

/// By what entries of one alignment are sorted, the largest first.
fn key(by_rest: bool, entry: &Entry) -> (u64, u64) {
    (if by_rest { entry.size.rest() } else { 0 }, entry.turn)
}

impl Group {
    /// The entry at this place has changed, and with it what those behind it come to.
    fn changed(&mut self, place: usize) {
        self.fresh = self.fresh.min(place);
    }

    fn add_up(&mut self, equals: &mut [Entry], window: Kind) -> Sums {
        let last = self.fresh.checked_sub(1).and_then(|last| equals.get(last));
        let mut sums = last.map_or(Sums::NOTHING, |entry| entry.sums);
        for entry in &mut equals[self.fresh..] {
            sums.add(entry, window);
            entry.sums = sums;
        }
        self.fresh = equals.len();
        sums
    }
}

impl Sums {
    pub(super) const NOTHING: Sums = Sums {
        used: 0,
        padded: 0,
        largest: Largest::NONE,
        whole: false,
        rest: 0,
        last_first: true,
        rest_first: true,
    };

    /// Adds an entry behind those of the same alignment.
    fn add(&mut self, entry: &Entry, window: Kind) {
        let Size { len, mask, largest } = entry.size;
        let follow = |end: u64| align_up(end, mask + 1).unwrap_or(u64::MAX).saturating_add(len);
        match (entry.padding, window) {
            (false, _) => self.used = follow(self.used),
            (true, Kind::Io) => self.padded = len,
            (true, _) => self.padded = follow(self.padded),
        }
        self.largest = self.largest.or(largest);
        match entry.size.rest() {
            0 => self.whole = true,
            rest if self.rest == 0 => self.rest = rest,
            rest => self.last_first &= rest == self.rest,
        }
        self.rest_first &= !self.whole || self.rest == 0;
    }
}

/// The entries of one list in the order that the driver's own insertions give them.
fn inserted(mut entries: Vec<Entry>, list: Kind, merging: &Merging) -> Vec<Entry> {
    // Each type on its own first, in the order of the functions.
    entries.sort_unstable_by_key(|entry| {
        if merging.routes[entry.kind as usize].reversed { u64::MAX - entry.turn } else { entry.turn }
    });
    let mut lists: PerKind<Vec<Entry>> = Default::default();
    for entry in entries {
        insert(&mut lists[entry.kind as usize], entry);
    }
    for (to, from) in merging.merges {
        for entry in std::mem::take(&mut lists[*from as usize]) {
            insert(&mut lists[*to as usize], entry);
        }
    }
    std::mem::take(&mut lists[list as usize])
}

/// Inserts by falling alignment. Among equals a node goes first when its length is a multiple of its alignment,
/// otherwise behind those that stick out farther.
pub(super) fn insert(list: &mut Vec<Entry>, entry: Entry) {
    let (mask, rest) = (entry.size.mask, entry.size.rest());
    let farther = |other: &Entry| other.size.mask == mask && other.size.rest() > rest;
    let mut place = list.partition_point(|other| other.size.mask > mask);
    while rest != 0 && list.get(place).is_some_and(farther) {
        place += 1;
    }
    list.insert(place, entry);
}

/// A node in a list, its size, and what its group comes to with it, without and with padding, as the tests compare them.
#[cfg(test)]
pub(super) type Shown = (usize, u64, u64, u64, u64);

#[cfg(test)]
impl List {
    pub(super) fn shown(&self) -> Vec<Shown> {
        let shown = |entry: &Entry| {
            let Entry { node, size, sums, .. } = *entry;
            (node, size.len, size.mask, sums.used, sums.padded)
        };
        self.entries.iter().map(shown).collect()
    }

    /// Brings the entries into the order that the driver's own insertions give them.
    pub(super) fn insert_as_the_driver(&mut self, window: Kind, merging: &Merging) {
        self.insert_all(window, merging);
        self.total(window);
    }
}
