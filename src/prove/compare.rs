//! Puts a prediction beside what was seen, BAR by BAR.

use std::collections::BTreeMap;

use super::observe::Seen;
use crate::layout::{Layout, Outcome, PlacedBar};
use crate::units::BarKind;

/// How far prediction and truth agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// Refused, hung, or finished: the same in both.
    pub outcome: bool,
    /// The same BARs have an address.
    pub placed: bool,
    /// The same memory BARs have the same addresses.
    pub addresses: bool,
    /// What differs, in words.
    pub differences: Vec<String>,
}

impl Agreement {
    /// Outcome and placed BARs agree: what the predictor promises.
    pub fn holds(&self) -> bool {
        self.outcome && self.placed
    }

    fn all() -> Agreement {
        Agreement { outcome: true, placed: true, addresses: true, differences: Vec::new() }
    }

    fn none(difference: String) -> Agreement {
        Agreement { outcome: false, placed: false, addresses: false, differences: vec![difference] }
    }
}

/// Compares; both must speak of the same guest, the one with stand-ins.
pub fn compare(predicted: &Layout, seen: &Seen) -> Agreement {
    match (&predicted.outcome, seen) {
        (Outcome::Refused, Seen::Refused(_)) | (Outcome::Hangs(_), Seen::Hung(_)) => Agreement::all(),
        (Outcome::Boots, Seen::Placed(bars)) => compare_bars(&predicted.bars, bars),
        (Outcome::GivesUp(_), Seen::Placed(bars)) => match bars.iter().find(|b| b.address.is_some()) {
            None => Agreement::all(),
            Some(b) => Agreement::none(format!("predicted to give up, but {} has a place", named(b))),
        },
        (outcome, seen) => Agreement::none(format!("predicted {outcome:?}, seen {}", seen.short())),
    }
}

fn compare_bars(predicted: &[PlacedBar], seen: &[PlacedBar]) -> Agreement {
    let mut agreement = Agreement::all();
    let index = |bars: &[PlacedBar]| -> BTreeMap<_, PlacedBar> {
        bars.iter().map(|b| ((b.function, b.bar.index), *b)).collect()
    };
    let (predicted, seen) = (index(predicted), index(seen));
    for (key, real) in &seen {
        let Some(guess) = predicted.get(key) else {
            agreement.placed = false;
            agreement.differences.push(format!("{} is not predicted", named(real)));
            continue;
        };
        let same_fate = guess.address.is_some() == real.address.is_some();
        // Which I/O ports a BAR gets is nobody's concern; whether it gets any is.
        if guess.address != real.address && !(same_fate && real.bar.kind == BarKind::Io) {
            agreement.addresses = false;
            agreement.placed &= same_fate;
            let show = |bar: &PlacedBar| bar.address.map_or("no address".to_owned(), |a| a.to_string());
            agreement.differences.push(format!(
                "{}: predicted {}, seen {}",
                named(real),
                show(guess),
                show(real)
            ));
        }
    }
    for (key, guess) in predicted.iter().filter(|(_, b)| !b.bar.is_rom()) {
        if !seen.contains_key(key) {
            agreement.placed = false;
            agreement.differences.push(format!("{} does not exist", named(guess)));
        }
    }
    agreement
}

fn named(bar: &PlacedBar) -> String {
    let PlacedBar { function, bar, .. } = bar;
    format!("BAR {} ({}) of function {}", bar.index, bar.size, function.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::FunctionId;
    use crate::units::{Addr, Bar, Bytes};

    fn placed(index: u8, address: Option<u64>) -> PlacedBar {
        PlacedBar {
            function: FunctionId(1),
            bar: Bar { index, size: Bytes(4096), kind: BarKind::Mem32 },
            address: address.map(Addr),
            reachable: true,
            rescued: false,
        }
    }

    #[test]
    fn each_kind_of_difference_is_told() {
        for (predicted, seen, holds, addresses) in [
            (vec![placed(0, Some(1))], vec![placed(0, Some(1))], true, true),
            (vec![placed(0, Some(1))], vec![placed(0, Some(2))], true, false),
            (vec![placed(0, Some(1))], vec![placed(0, None)], false, false),
            (vec![placed(0, Some(1))], vec![], false, true),
            (vec![], vec![placed(0, None)], false, true),
            (vec![placed(6, None)], vec![], true, true),
        ] {
            let agreement = compare_bars(&predicted, &seen);
            assert_eq!((agreement.holds(), agreement.addresses), (holds, addresses), "{agreement:?}");
            assert_eq!(agreement.differences.is_empty(), holds && addresses);
        }
    }
}
