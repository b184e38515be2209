//! Giving up one device after the other leaves the same trees as building them without those devices.

use proptest::prelude::*;

use super::{Kind, PackRules, Padding, Tree};
use crate::layout::ovmf_tests::any_guest;
use crate::layout::tests::root_port;
use crate::layout::{Bridge, Role};

fn padding(bridge: &Bridge) -> Padding {
    let mut padding = Padding::default();
    padding[Kind::Mem32 as usize] = 2 << 20;
    if bridge.children.len().is_multiple_of(2) {
        padding[Kind::Io as usize] = 512;
        padding[Kind::PMem64 as usize] = 1 << 30;
    }
    padding
}

fn other_padding(bridge: &Bridge) -> Padding {
    let mut padding = padding(bridge);
    padding[Kind::PMem64 as usize] = 32 << 30;
    padding
}

proptest! {
    #[test]
    fn what_changes_step_by_step_is_what_would_be_built_anew(
        guest in any_guest(),
        deep in any::<bool>(),
        rules in (any::<bool>(), any::<bool>()),
        rounds in prop::collection::vec(any::<[bool; 5]>(), 0..40),
    ) {
        let mut guest = guest;
        if deep && let Some(Role::Bridge(bridge)) = guest.bus.last().map(|last| last.role.clone()) {
            let behind = bridge.children.into_iter().chain((1..4).map(|number| root_port(number, Vec::new())));
            let mut port = root_port(20, behind.collect());
            port.function = 1;
            if let Some(Role::Bridge(last)) = guest.bus.last_mut().map(|last| &mut last.role) {
                last.children.push(port);
            }
        }
        let rules = PackRules { high: rules.0, mem64_through_pref64: rules.1 };
        let mut tree = Tree::new(&guest.bus);
        // A boot leaves nothing behind that a later one could notice.
        for padding in [other_padding, padding] {
            tree.boot(rules, padding);
            for unsatisfied in &rounds {
                tree.give_up(*unsatisfied);
                prop_assert_eq!(tree.lists(), tree.anew());
                prop_assert_eq!(tree.lists(), tree.inserted());
            }
        }
        let mut first = Tree::new(&guest.bus);
        first.boot(rules, padding);
        tree.boot(rules, padding);
        prop_assert_eq!(tree.lists(), first.lists());
    }
}
