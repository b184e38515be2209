//! The predictor against the real firmware, on fixed geometries: each rule at least once, each row booted in the
//! real QEMU with stand-in devices. `tests/truth/geometries` holds the rows, in a notation that [`notation`] reads.
//!
//! Needs QEMU (package qemu-system-x86) and the firmware of several Debian suites: `tests/firmware/fetch`.

mod notation;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use barfit::guest::firmware_rules;
use barfit::host::{Depth, Host};
use barfit::layout::{Firmware, lay_out};
use barfit::prove::{
    Accel, FirmwareFiles, Limits, Rig, Seen, StandIn, boot, compare, find_qemu, rule, stand_in,
};

/// QEMUs side by side.
const JOBS: usize = 2;

/// One row of the table.
struct Row {
    /// Its line in the file.
    line: usize,
    /// Suite and kind of firmware, as the row names it: `bookworm`, `bookworm-seabios`.
    firmware: String,
    /// The rule that it is there for, as the predictor names it.
    rule: String,
    /// The guest.
    guest: String,
}

fn rows(text: &str) -> Vec<Row> {
    let lines = text.lines().enumerate().filter(|(_, l)| !l.is_empty() && !l.starts_with('#'));
    lines
        .map(|(n, l)| {
            let mut parts = l.splitn(3, '|').map(str::trim);
            let mut part =
                || parts.next().unwrap_or_else(|| panic!("line {}: three parts", n + 1)).to_owned();
            Row { line: n + 1, firmware: part(), rule: part(), guest: part() }
        })
        .collect()
}

/// A firmware of the cache, with the rules found from its file.
struct Subject {
    rules: Firmware,
    rig: Rig,
}

fn subject(name: &str) -> Subject {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/firmware");
    let cache = std::env::var_os("BARFIT_FIRMWARE_CACHE").map_or_else(default, PathBuf::from);
    let (suite, file) = match name.strip_suffix("-seabios") {
        Some(suite) => (suite, "usr/share/seabios/bios-256k.bin"),
        None => (name, "usr/share/OVMF/OVMF_CODE_4M.fd"),
    };
    let path = cache.join(suite).join(file);
    assert!(path.is_file(), "{} is missing: run tests/firmware/fetch {suite}", path.display());
    let described = Host::here().firmware_file(&path, Depth::Image).expect("a firmware that is known");
    Subject {
        rules: firmware_rules(&described).expect("a firmware whose rules are known"),
        rig: Rig::new(
            find_qemu().unwrap_or_else(|e| panic!("{e}")),
            FirmwareFiles::beside(&path).unwrap_or_else(|e| panic!("{e}")),
            Accel::Tcg,
        ),
    }
}

/// Boots one row; what is wrong with it, if anything.
fn judge(subject: &Subject, row: &Row, stand: &StandIn) -> Vec<String> {
    let predicted = lay_out(&stand.guest);
    let mut wrong = Vec::new();
    if rule(&predicted) != row.rule {
        wrong.push(format!("the row is there for `{}`, the prediction is `{}`", row.rule, rule(&predicted)));
    }
    let limits = Limits { timeout: Duration::from_secs(600), ..Limits::default() };
    match boot(&subject.rig, stand, &limits) {
        Ok(observed) if observed.seen == Seen::TimedOut => wrong.push("no answer in time".to_owned()),
        Ok(observed) => wrong.extend(compare(&predicted, &observed.seen).differences),
        Err(error) => wrong.push(error.to_string()),
    }
    wrong
}

#[test]
fn prediction_and_real_firmware_agree() {
    let rows = rows(include_str!("geometries"));
    let mut names: Vec<&str> = rows.iter().map(|row| row.firmware.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let subjects: Vec<(&str, Subject)> = names.into_iter().map(|name| (name, subject(name))).collect();

    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let start = Instant::now();
                    let (_, subject) =
                        subjects.iter().find(|(name, _)| *name == row.firmware).expect("its firmware");
                    let guest = notation::guest(&row.guest, &subject.rules)
                        .unwrap_or_else(|e| panic!("line {}: {e}", row.line));
                    let wrong = match stand_in(&guest) {
                        Ok(stand) => judge(subject, row, &stand),
                        Err(error) => vec![error.to_string()],
                    };
                    println!(
                        "{:>4} {:<17} {:<28} {:>6.1} s {}",
                        row.line,
                        row.firmware,
                        row.rule,
                        start.elapsed().as_secs_f64(),
                        if wrong.is_empty() { "agrees" } else { "DISAGREES" }
                    );
                    if !wrong.is_empty() {
                        let text = format!("line {}: {}\n    {}", row.line, row.guest, wrong.join("\n    "));
                        failures.lock().expect("the list").push(text);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("the list");
    assert!(
        failures.is_empty(),
        "{} of {} rows of tests/truth/geometries disagree:\n{}",
        failures.len(),
        rows.len(),
        failures.join("\n")
    );
}
