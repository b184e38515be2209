//! What asks for address space: a BAR, a bridge's window or its padding, and what several of them come to.

use std::ops::{Index, IndexMut};

use crate::layout::host_bridge::Kind;
use crate::units::{KIB, MIB, align_up};

/// Granularity of a bridge's memory windows.
const BRIDGE_MEM_MASK: u64 = MIB - 1;
/// Granularity of a bridge's I/O window.
const BRIDGE_IO_MASK: u64 = 4 * KIB - 1;

/// Granularity of a bridge's window, minus one.
pub(super) const fn granularity(window: Kind) -> u64 {
    match window {
        Kind::Io => BRIDGE_IO_MASK,
        Kind::Mem32 | Kind::PMem32 | Kind::Mem64 | Kind::PMem64 => BRIDGE_MEM_MASK,
    }
}

/// Which node: its place in [`Nodes`].
pub(super) type NodeId = u32;

/// What a node of a resource tree stands for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A BAR: its number in the list of all BARs.
    Bar(u32),
    /// Everything of one type behind a bridge.
    Window,
    /// Space for devices plugged later.
    Padding,
    /// The place where expansion ROMs are copied from.
    Rom,
}

/// A node of a resource tree, with all that its place in a [`List`](super::list::List) depends on.
#[derive(Copy, Clone, Debug)]
pub(super) struct Node {
    pub(super) size: Size,
    /// When it is inserted among nodes of the same alignment.
    pub(super) turn: u64,
    /// Whose it is: a number of a function, or [`NOBODY`] of a root bus.
    pub(super) dev: u32,
    /// The bus in whose lists it stands, or [`NOBODY`] of a root bus's windows.
    pub(super) bus: u32,
    pub(super) what: What,
    pub(super) kind: Kind,
}

/// No function, or no bus.
pub(super) const NOBODY: u32 = u32::MAX;

impl Node {
    pub(super) fn is_padding(&self) -> bool {
        self.what == What::Padding
    }
}

/// All nodes of a tree.
#[derive(Clone, Debug)]
pub(super) struct Nodes(Vec<Node>);

impl Nodes {
    pub(super) fn with_capacity(capacity: usize) -> Nodes {
        Nodes(Vec::with_capacity(capacity))
    }

    /// The number that the next node will have. There are no more than a guest's functions have BARs and windows.
    pub(super) fn next(&self) -> NodeId {
        self.0.len() as NodeId
    }

    pub(super) fn push(&mut self, node: Node) {
        self.0.push(node);
    }

    pub(super) fn extend(&mut self, nodes: impl Iterator<Item = Node>) {
        self.0.extend(nodes);
    }
}

impl Index<NodeId> for Nodes {
    type Output = Node;

    fn index(&self, node: NodeId) -> &Node {
        &self.0[node as usize]
    }
}

impl IndexMut<NodeId> for Nodes {
    fn index_mut(&mut self, node: NodeId) -> &mut Node {
        &mut self.0[node as usize]
    }
}

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
    /// Asks for nothing.
    pub(super) const fn nothing(mask: u64) -> Size {
        Size { len: 0, mask, largest: Largest::NONE }
    }

    /// What is left of the length beyond a multiple of the alignment.
    pub(super) fn rest(&self) -> u64 {
        self.len & self.mask
    }
}

/// A node that may be given up, and its length; of length 0: there is none.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Largest {
    pub(super) len: u64,
    pub(super) node: NodeId,
}

impl Largest {
    pub(super) const NONE: Largest = Largest { len: 0, node: 0 };

    /// The larger of this one and a later one; the later of equals.
    pub(super) fn or(self, later: Largest) -> Largest {
        if later.len >= self.len { later } else { self }
    }
}

/// What the nodes of a list, front to back, come to.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Sums {
    /// To the end of the last.
    pub(super) used: u64,
    /// The same of the padding among them.
    pub(super) padded: u64,
    pub(super) largest: Largest,
    pub(super) rests: Rests,
}

/// How the nodes of a list, front to back, stick out beyond a multiple of their alignment.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Rests {
    /// Of each alignment, those with a rest have the same.
    pub(super) same: bool,
    /// Of each alignment, all have a rest, or none has.
    pub(super) all_or_none: bool,
    /// Of the last alignment, one has no rest.
    whole: bool,
    /// Of the last alignment, the rest of the first that has one.
    first: u64,
    /// The last alignment, minus one.
    mask: u64,
}

impl Sums {
    pub(super) const NOTHING: Sums = Sums {
        used: 0,
        padded: 0,
        largest: Largest::NONE,
        rests: Rests { same: true, all_or_none: true, whole: false, first: 0, mask: 0 },
    };

    /// Adds a node at the end.
    #[inline]
    pub(super) fn add(&mut self, node: &Node, window: Kind) {
        let Size { len, mask, largest } = node.size;
        let follow = |end: u64| align_up(end, mask + 1).unwrap_or(u64::MAX).saturating_add(len);
        if !node.is_padding() {
            self.used = follow(self.used);
        } else if window == Kind::Io {
            self.padded = len;
        } else {
            self.padded = follow(self.padded);
        }
        self.largest = self.largest.or(largest);
        self.rests.add(mask, node.size.rest());
    }
}

impl Rests {
    #[inline]
    fn add(&mut self, mask: u64, rest: u64) {
        if mask != self.mask {
            (self.mask, self.whole, self.first) = (mask, false, 0);
        }
        match (rest, self.first) {
            (0, _) => self.whole = true,
            (rest, 0) => self.first = rest,
            (rest, first) => self.same &= rest == first,
        }
        self.all_or_none &= !(self.whole && self.first != 0);
    }
}
