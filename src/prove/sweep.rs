//! Prediction against truth on random guests: many boots, side by side, each one reproducible from its seed and
//! number.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::observe::{Limits, boot};
use super::{Error, Result, Rig, Seen, compare, geometry, stand_in};
use crate::layout::{Firmware, Layout, Outcome, Window, lay_out};

/// A firmware to be swept: its rules as the predictor knows them, and the real file in a rig.
#[derive(Debug)]
pub struct Subject {
    /// How it is called in the tables.
    pub name: String,
    /// Its rules.
    pub rules: Firmware,
    /// The rig with its file.
    pub rig: Rig,
}

/// One guest, predicted and seen.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// The seed.
    pub seed: u64,
    /// The guest's number under the seed.
    pub number: u64,
    /// The firmware.
    pub firmware: String,
    /// Its file.
    pub file: PathBuf,
    /// Which rule of the predictor decided.
    pub rule: String,
    /// What was seen, in short.
    pub seen: String,
    /// Whether outcome and placed BARs agree. `None`: nothing can be said.
    pub agrees: Option<bool>,
    /// Whether all addresses agree as well.
    pub addresses: bool,
    /// What differs.
    pub differences: Vec<String>,
    /// Seconds of wall-clock time.
    pub seconds: f64,
    /// CPU seconds of the guest.
    pub cpu_seconds: f64,
    /// The guest, in the words of the layout.
    pub guest: String,
}

/// One line for people, and the command that does it again.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { seed, number, firmware, file, rule, seen, differences, .. } = self;
        let differences = differences.join("; ");
        writeln!(f, "{firmware}, {rule}: {seen}. {differences}")?;
        write!(f, "    barfit prove --sweep 1 --seed {seed} --from {number} --firmware {}", file.display())
    }
}

/// Predicts and boots one random guest.
///
/// # Errors
/// As [`boot`]; a guest that cannot be built here is a case of which nothing can be said.
pub fn case(subject: &Subject, seed: u64, number: u64, limits: &Limits) -> Result<Case> {
    let geometry = geometry(seed, number, &subject.rules);
    let mut case = Case {
        seed,
        number,
        firmware: subject.name.clone(),
        file: subject.rig.firmware.code.clone(),
        rule: String::new(),
        seen: String::new(),
        agrees: None,
        addresses: false,
        differences: Vec::new(),
        seconds: 0.0,
        cpu_seconds: 0.0,
        guest: String::new(),
    };
    let booted = stand_in(&geometry.guest).and_then(|stand| {
        let predicted = lay_out(&stand.guest);
        case.rule = rule(&predicted);
        case.guest = format!("{:?}", stand.guest);
        Ok((predicted, boot(&subject.rig, &stand, limits)?))
    });
    match booted {
        Ok((predicted, observed)) => {
            let agreement = compare(&predicted, &observed.seen);
            case.seen = observed.seen.short();
            case.agrees = (observed.seen != Seen::TimedOut).then(|| agreement.holds());
            case.addresses = agreement.addresses;
            case.differences = agreement.differences;
            case.seconds = observed.time.as_secs_f64();
            case.cpu_seconds = observed.cpu.as_secs_f64();
        }
        Err(Error::Unsupported(what)) => case.seen = format!("not built: {what}"),
        Err(other) => return Err(other),
    }
    Ok(case)
}

/// The rule of the predictor that decided, as tables name it.
pub fn rule(layout: &Layout) -> String {
    match (&layout.outcome, layout.window) {
        (Outcome::Refused, _) => "refused".to_owned(),
        (Outcome::Hangs(_), _) => "hangs".to_owned(),
        (Outcome::GivesUp(_), _) => "gives up".to_owned(),
        (Outcome::Boots, None) => "no window".to_owned(),
        (Outcome::Boots, Some(Window { rule, .. })) => {
            let dropped = layout.bars.iter().any(|b| b.address.is_none() && !b.bar.is_rom());
            format!("{rule:?}{}", if dropped { ", some unplaced" } else { "" })
        }
    }
}

/// Sweeps guests `first` to `first + count` of `seed`; guest N boots with subject N modulo their number, `jobs` at
/// a time. Each case is handed to `each` as it comes.
///
/// # Errors
/// The first error of [`case`] ends the sweep.
pub fn sweep(
    subjects: &[Subject],
    seed: u64,
    first: u64,
    count: u64,
    jobs: usize,
    limits: &Limits,
    each: impl FnMut(&Case) + Send,
) -> Result<Summary> {
    let next = AtomicU64::new(first);
    let sink = Mutex::new((Summary::default(), each));
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let failed = failure.lock().map_or(true, |f| f.is_some());
                    if number >= first.saturating_add(count) || failed || subjects.is_empty() {
                        break;
                    }
                    let subject = &subjects[(number % subjects.len() as u64) as usize];
                    match case(subject, seed, number, limits) {
                        Ok(case) => {
                            if let Ok(mut sink) = sink.lock() {
                                sink.0.add(&case);
                                (sink.1)(&case);
                            }
                        }
                        Err(error) => {
                            if let Ok(mut slot) = failure.lock() {
                                slot.get_or_insert(error);
                            }
                        }
                    }
                }
            });
        }
    });
    match failure.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(sink.into_inner().map(|s| s.0).unwrap_or_default()),
    }
}

/// Agreement by firmware and rule.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    rows: BTreeMap<(String, String), Row>,
}

#[derive(Copy, Clone, Debug, Default)]
struct Row {
    cases: u32,
    agree: u32,
    addresses: u32,
    unknown: u32,
}

impl Summary {
    fn add(&mut self, case: &Case) {
        for rule in [case.rule.as_str(), "all"] {
            let row = self.rows.entry((case.firmware.clone(), rule.to_owned())).or_default();
            row.cases += 1;
            row.agree += u32::from(case.agrees == Some(true));
            row.addresses += u32::from(case.addresses);
            row.unknown += u32::from(case.agrees.is_none());
        }
    }

    /// Whether no case disagreed.
    pub fn all_agree(&self) -> bool {
        self.rows.values().all(|row| row.agree + row.unknown == row.cases)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<40} {:<28} {:>6} {:>6} {:>9} {:>8}",
            "firmware", "rule", "cases", "agree", "addresses", "unknown"
        )?;
        for ((firmware, rule), row) in &self.rows {
            writeln!(
                f,
                "{firmware:<40} {rule:<28} {:>6} {:>6} {:>9} {:>8}",
                row.cases, row.agree, row.addresses, row.unknown
            )?;
        }
        Ok(())
    }
}
