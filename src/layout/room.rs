//! What can be said of a guest without laying it out: that the space for BARs is too small for them, whatever the firmware
//! makes of it.

use super::{Bridge, BridgeKind, Function, FunctionId, Role};
use crate::units::{Bar, BarKind, GIB};

/// A BAR of this size lies above 4 GiB or nowhere.
const LARGE: u64 = 4 * GIB;

/// Bytes that BARs of memory can come to at most, if all of them are to be reachable.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Room {
    pub(super) all: u64,
    pub(super) above_4g: u64,
}

/// Bytes that BARs of memory come to.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    all: u64,
    /// 64-bit prefetchable BARs of root buses with a large one: a root bus is given one piece for all of its.
    above_4g: u64,
}

impl Room {
    /// `false`: not all of these BARs are reachable, and a layout need not be made to learn that. `true` says nothing.
    pub fn may_hold(self, demand: Demand) -> bool {
        demand.all <= self.all && demand.above_4g <= self.above_4g
    }
}

impl Demand {
    /// The BARs of those functions on a root bus and behind that are `wanted`, expansion ROMs excluded.
    pub fn new(root: &[Function], wanted: impl Fn(FunctionId) -> bool) -> Demand {
        let mut demand = Demand::default();
        demand.add_root(root, &wanted);
        demand
    }

    fn add_root(&mut self, functions: &[Function], wanted: &dyn Fn(FunctionId) -> bool) {
        let (mut sum, mut largest) = (0u64, 0);
        self.add(functions, wanted, &mut |size| {
            sum = sum.saturating_add(size);
            largest = size.max(largest);
        });
        if largest >= LARGE {
            self.above_4g = self.above_4g.saturating_add(sum);
        }
    }

    /// Tells `high` of each 64-bit prefetchable BAR.
    fn add(
        &mut self,
        functions: &[Function],
        wanted: &dyn Fn(FunctionId) -> bool,
        high: &mut dyn FnMut(u64),
    ) {
        for function in functions {
            if wanted(function.id) {
                for Bar { size, kind, .. } in function.bars.iter().filter(|bar| !bar.is_rom()) {
                    if *kind != BarKind::Io {
                        self.all = self.all.saturating_add(size.get());
                    }
                    if *kind == BarKind::Mem64Prefetchable {
                        high(size.get());
                    }
                }
            }
            match &function.role {
                Role::Bridge(Bridge { kind: BridgeKind::Expander { .. }, children, .. }) => {
                    self.add_root(children, wanted);
                }
                Role::Bridge(bridge) => self.add(&bridge.children, wanted, high),
                Role::Endpoint => {}
            }
        }
    }
}
