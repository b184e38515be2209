//! Which of a bus's lists are merged into which: BARs move to types that the bridge can pass.

use crate::layout::host_bridge::{Kind, PerKind};

/// Where the nodes of a type end up after all lists have been merged.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// The list.
    pub(super) to: Kind,
    /// Behind how many other types in the order of insertion.
    pub(super) rank: u64,
    /// Turned around by an odd number of merges.
    pub(super) reversed: bool,
}

/// Which list of a bus is merged into which: BARs move to types that the bridge can pass.
#[derive(Debug)]
pub(super) struct Merging {
    /// One after the other: the list that takes, and the one that is taken.
    pub(super) merges: &'static [(Kind, Kind)],
    pub(super) routes: PerKind<Route>,
    /// Something goes through the bridge's prefetchable 64-bit window.
    pub(super) pref64: bool,
}

pub(super) static ROOT_WITH_HIGH: Merging =
    Merging::new(&[(Kind::Mem32, Kind::PMem32), (Kind::Mem64, Kind::PMem64)], false);
pub(super) static ROOT_WITHOUT_HIGH: Merging = Merging::new(
    &[(Kind::Mem32, Kind::Mem64), (Kind::PMem32, Kind::PMem64), (Kind::Mem32, Kind::PMem32)],
    false,
);
pub(super) static MEM64_THROUGH_PREF64: Merging =
    Merging::new(&[(Kind::PMem64, Kind::Mem64), (Kind::Mem32, Kind::PMem32)], true);
pub(super) static MEM64_THROUGH_NONE: Merging = Merging::new(&[(Kind::PMem64, Kind::Mem64)], false);
pub(super) static WITH_PREF64: Merging =
    Merging::new(&[(Kind::Mem32, Kind::Mem64), (Kind::Mem32, Kind::PMem32)], true);
pub(super) static WITHOUT_PREF64: Merging = Merging::new(&[(Kind::Mem32, Kind::Mem64)], false);

impl Merging {
    const fn new(merges: &'static [(Kind, Kind)], pref64: bool) -> Merging {
        Merging { merges, routes: routes(merges), pref64 }
    }
}

/// Where each type ends up when lists are merged like that. A merge takes the nodes of one list first to last, and
/// puts each before its equals.
const fn routes(merges: &[(Kind, Kind)]) -> PerKind<Route> {
    let mut routes = [Route { to: Kind::Io, rank: 0, reversed: false }; 5];
    let mut kind = 0;
    while kind < 5 {
        routes[kind].to = Kind::ALL[kind];
        kind += 1;
    }
    let mut merge = 0;
    while merge < merges.len() {
        let (to, from) = merges[merge];
        let (behind, turned) = (last_rank(&routes, to), last_rank(&routes, from));
        let mut kind = 0;
        while kind < 5 {
            let Route { to: now, rank, reversed } = routes[kind];
            if now as usize == from as usize {
                routes[kind] = Route { to, rank: behind + 1 + turned - rank, reversed: !reversed };
            }
            kind += 1;
        }
        merge += 1;
    }
    routes
}

/// The rank of the type that is inserted last into a list.
const fn last_rank(routes: &PerKind<Route>, list: Kind) -> u64 {
    let (mut last, mut kind) = (0, 0);
    while kind < 5 {
        if routes[kind].to as usize == list as usize && routes[kind].rank > last {
            last = routes[kind].rank;
        }
        kind += 1;
    }
    last
}
