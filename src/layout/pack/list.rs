//! What lies in a window of a bus, front to back: the driver's sorted lists, and what they come to.
//!
//! The driver inserts by falling alignment. Among equals a node goes first, but behind those that stick out farther:
//! whose length has a larger rest beyond a multiple of the alignment. A node without a rest always goes first.
//! What the nodes come to is added up from where something has changed.

use std::cmp::Reverse;

use super::merging::Merging;
use super::node::{Node, NodeId, Nodes, Rests, Size, Sums, granularity};
use crate::layout::host_bridge::{Kind, PerKind};
use crate::units::align_up;

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

/// After so many entries what they come to is remembered.
const STRIDE: usize = if cfg!(test) { 2 } else { 16 };

/// What lies in a window, front to back. The entries of all lists are in one [`Entries`], each at its place.
#[derive(Clone, Debug, Default)]
pub(super) struct List {
    start: usize,
    len: usize,
    order: Order,
    /// What the first [`STRIDE`] entries come to, the first two times as many, and so on, as far as nothing has changed.
    marks: Vec<Sums>,
}

/// The nodes of lists.
pub(super) type Entries = Vec<NodeId>;

impl List {
    /// A list without entries, and with room for them from `start` on.
    pub(super) fn new(start: usize) -> List {
        List { start, ..List::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn entries<'e>(&self, entries: &'e [NodeId]) -> &'e [NodeId] {
        &entries[self.start..][..self.len]
    }

    fn entries_mut<'e>(&self, entries: &'e mut [NodeId]) -> &'e mut [NodeId] {
        &mut entries[self.start..][..self.len]
    }

    /// Takes everything out. What [`List::push`] then puts in has no order before [`List::sort`].
    pub(super) fn clear(&mut self) {
        self.len = 0;
        self.marks.clear();
        self.order = Order::LastFirst;
    }

    pub(super) fn push(&mut self, entries: &mut [NodeId], node: NodeId) {
        entries[self.start + self.len] = node;
        self.len += 1;
    }

    /// Brings the entries into the order of their keys.
    pub(super) fn sort(&mut self, entries: &mut [NodeId], nodes: &Nodes) {
        self.marks.clear();
        let entries = self.entries_mut(entries);
        if entries.len() < 2 {
            return;
        }
        match self.order {
            Order::RestFirst => entries.sort_unstable_by_key(|node| Reverse(by_rest(&nodes[*node]))),
            Order::LastFirst | Order::Inserted => {
                entries.sort_unstable_by_key(|node| Reverse(by_turn(&nodes[*node])));
            }
        }
    }

    /// The place of a node.
    fn place(&self, entries: &[NodeId], nodes: &Nodes, node: NodeId) -> usize {
        let (entries, node) = (self.entries(entries), &nodes[node]);
        match self.order {
            Order::RestFirst => {
                let own = by_rest(node);
                entries.partition_point(|other| by_rest(&nodes[*other]) > own)
            }
            Order::LastFirst | Order::Inserted => {
                let own = by_turn(node);
                entries.partition_point(|other| by_turn(&nodes[*other]) > own)
            }
        }
    }

    /// The entry at this place has changed, and with it what it and those behind it come to.
    fn changed(&mut self, place: usize) {
        self.marks.truncate(place / STRIDE);
    }

    /// Gives a node another size, and the place that goes with it.
    pub(super) fn resize(&mut self, entries: &mut [NodeId], nodes: &mut Nodes, node: NodeId, size: Size) {
        let before = nodes[node].size;
        if before.len != 0 {
            let was = match self.order {
                Order::Inserted => {
                    self.entries(entries).iter().position(|other| *other == node).unwrap_or_default()
                }
                Order::LastFirst | Order::RestFirst => self.place(entries, nodes, node),
            };
            self.changed(was);
            let same_place = self.order != Order::RestFirst || before.rest() == size.rest();
            if size.len != 0 && size.mask == before.mask && same_place {
                nodes[node].size = size;
                return;
            }
            self.entries_mut(entries).copy_within(was + 1.., was);
            self.len -= 1;
        }
        nodes[node].size = size;
        if size.len != 0 {
            let now = self.place(entries, nodes, node);
            self.changed(now);
            self.len += 1;
            let entries = self.entries_mut(entries);
            entries.copy_within(now..entries.len() - 1, now + 1);
            entries[now] = node;
        }
    }

    /// Tells of each node that is not padding, and where it begins, from where the window does.
    pub(super) fn place_all(&self, entries: &[NodeId], nodes: &Nodes, mut tell: impl FnMut(u64, &Node)) {
        let mut end = 0u64;
        for node in self.entries(entries) {
            let node = &nodes[*node];
            if !node.is_padding() {
                let start = align_up(end, node.size.mask + 1).unwrap_or(u64::MAX);
                end = start.saturating_add(node.size.len);
                tell(start, node);
            }
        }
    }

    /// Brings the entries into the driver's order, and says how large a window they need.
    pub(super) fn lay_out(
        &mut self,
        entries: &mut [NodeId],
        nodes: &Nodes,
        window: Kind,
        merging: &Merging,
    ) -> Size {
        let mut total = self.total(entries, nodes, window);
        let order = match (self.order, total.rests) {
            (Order::LastFirst, Rests { same: true, .. }) => Order::LastFirst,
            (Order::RestFirst, Rests { all_or_none: true, .. }) => Order::RestFirst,
            (_, Rests { same: true, .. }) => Order::LastFirst,
            (_, Rests { all_or_none: true, .. }) => Order::RestFirst,
            _ => Order::Inserted,
        };
        if order != self.order || order == Order::Inserted {
            self.order = order;
            if order == Order::Inserted {
                self.insert_all(entries, nodes, window, merging);
            } else {
                self.sort(entries, nodes);
            }
            total = self.total(entries, nodes, window);
        }
        let granularity = granularity(window);
        let round_up = |len: u64| align_up(len, granularity + 1).unwrap_or(u64::MAX);
        let padded = if window == Kind::Io { total.padded } else { round_up(total.padded) };
        let first = self.entries(entries).first();
        let mask = first.map_or(granularity, |first| granularity.max(nodes[*first].size.mask));
        Size { len: round_up(total.used).max(padded), mask, largest: total.largest }
    }

    fn insert_all(&mut self, entries: &mut [NodeId], nodes: &Nodes, window: Kind, merging: &Merging) {
        self.marks.clear();
        let entries = self.entries_mut(entries);
        entries.copy_from_slice(&inserted(entries.to_vec(), nodes, window, merging));
    }

    /// What all entries come to.
    #[inline]
    fn total(&mut self, entries: &[NodeId], nodes: &Nodes, window: Kind) -> Sums {
        let mut sums = Sums::NOTHING;
        let mut rest = self.entries(entries);
        if let Some(last) = self.marks.last() {
            sums = *last;
            rest = &rest[self.marks.len() * STRIDE..];
        }
        while let Some((chunk, behind)) = rest.split_at_checked(STRIDE) {
            chunk.iter().for_each(|node| sums.add(&nodes[*node], window));
            self.marks.push(sums);
            rest = behind;
        }
        rest.iter().for_each(|node| sums.add(&nodes[*node], window));
        sums
    }
}

/// By what nodes are sorted, the largest first, where the last inserted of an alignment comes first: both in one number.
fn by_turn(node: &Node) -> u128 {
    u128::from(node.size.mask) << 64 | u128::from(node.turn)
}

/// The same where the one with the largest rest comes first.
fn by_rest(node: &Node) -> (u64, u64, u64) {
    (node.size.mask, node.size.rest(), node.turn)
}

/// The entries of one list in the order that the driver's own insertions give them.
fn inserted(mut entries: Entries, nodes: &Nodes, list: Kind, merging: &Merging) -> Entries {
    // Each type on its own first, in the order of the functions.
    entries.sort_unstable_by_key(|&node| {
        let node = &nodes[node];
        if merging.routes[node.kind as usize].reversed { u64::MAX - node.turn } else { node.turn }
    });
    let mut lists: PerKind<Entries> = Default::default();
    for node in entries {
        insert(&mut lists[nodes[node].kind as usize], nodes, node);
    }
    for (to, from) in merging.merges {
        for node in std::mem::take(&mut lists[*from as usize]) {
            insert(&mut lists[*to as usize], nodes, node);
        }
    }
    std::mem::take(&mut lists[list as usize])
}

/// Inserts by falling alignment. Among equals a node goes first when its length is a multiple of its alignment,
/// otherwise behind those that stick out farther.
pub(super) fn insert(list: &mut Entries, nodes: &Nodes, node: NodeId) {
    let (mask, rest) = (nodes[node].size.mask, nodes[node].size.rest());
    let farther = |other: &NodeId| {
        let other = nodes[*other].size;
        other.mask == mask && other.rest() > rest
    };
    let mut place = list.partition_point(|other| nodes[*other].size.mask > mask);
    while rest != 0 && list.get(place).is_some_and(farther) {
        place += 1;
    }
    list.insert(place, node);
}

/// Nodes of a list with their lengths and alignments, and what it has added up, as the tests compare them.
#[cfg(test)]
pub(super) type Shown = (Vec<(NodeId, u64, u64)>, Vec<Sums>);

#[cfg(test)]
impl List {
    pub(super) fn shown(&self, entries: &[NodeId], nodes: &Nodes) -> Shown {
        let shown = |&node: &NodeId| (node, nodes[node].size.len, nodes[node].size.mask);
        (self.entries(entries).iter().map(shown).collect(), self.marks.clone())
    }

    /// Brings the entries into the order that the driver's own insertions give them.
    pub(super) fn insert_as_the_driver(
        &mut self,
        entries: &mut [NodeId],
        nodes: &Nodes,
        window: Kind,
        merging: &Merging,
    ) {
        self.insert_all(entries, nodes, window, merging);
        self.total(entries, nodes, window);
    }
}
