//! A QEMU command line: what the shim makes of it, and the comparison that the hook makes at `started`.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use arbitrary::Unstructured;
use barfit::plan::{Change, CpuGlobal, MaxPhysAddrValue};
use barfit::rewrite::argv::rewrite;
use barfit::units::PhysBits;

/// A plan, then words that end in NUL, as in `/proc/PID/cmdline`.
pub(super) fn argv(bytes: &[u8]) {
    let (head, line) = bytes.split_at(bytes.len().min(4));
    let changes = changes(&mut Unstructured::new(head));
    let line = line.strip_suffix(b"\0").unwrap_or(line);
    let words: Vec<OsString> =
        line.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect();
    assert_eq!(rewrite(words.clone(), &[]), words, "no change, other words");
    let new = rewrite(words.clone(), &changes);
    is_settled(&new, &changes);
    keeps_the_rest(&words, &new);
}

/// A plan: at most one change of each kind.
fn changes(input: &mut Unstructured<'_>) -> Vec<Change> {
    let mut pick = |most: u8| input.int_in_range(0..=most).unwrap_or_default();
    let bits = PhysBits::new(32 + u64::from(pick(20))).expect("32 to 52");
    let width = match pick(6) {
        0 => None,
        1 => Some(Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { limit: None })),
        2 => Some(Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { limit: Some(bits) })),
        3 => Some(Change::SetCpuGlobal(CpuGlobal::PhysBits(bits))),
        4 => Some(Change::SetCpuGlobal(CpuGlobal::HostPhysBits)),
        5 => Some(Change::SetCpuGlobal(CpuGlobal::HostPhysBitsLimit(bits))),
        _ => Some(Change::SetMaxPhysAddr(MaxPhysAddrValue::Emulate(bits))),
    };
    let feature = (pick(1) == 1).then_some(Change::RequireFeature("pdpe1gb"));
    let window = match pick(3) {
        0 => None,
        1 => Some(Change::RemoveMmio64),
        more => Some(Change::SetMmio64Mib(1 << (12 + more))),
    };
    [width, feature, window].into_iter().flatten().collect()
}

/// The running QEMU has the plan: making it again finds nothing to do.
pub(super) fn is_settled(argv: &[OsString], changes: &[Change]) {
    assert_eq!(rewrite(argv.to_vec(), changes), argv, "{changes:?} made twice");
}

/// Words change only as values of the three options that a plan is about, go only with `-fw_cfg`, and come only
/// behind all others, as options of the same three.
fn keeps_the_rest(old: &[OsString], new: &[OsString]) {
    let is = |word: Option<&OsString>, options: &[&str]| {
        let word = word.map(OsString::as_os_str).map(OsStr::as_bytes).unwrap_or_default();
        let name = word.strip_prefix(b"--").or_else(|| word.strip_prefix(b"-"));
        name.is_some_and(|name| options.iter().any(|option| option.as_bytes() == name))
    };
    // An option in the place of another's value: QEMU takes no such command line.
    let known = ["cpu", "global", "fw_cfg"];
    if old.windows(2).any(|pair| is(pair.first(), &known) && is(pair.last(), &known)) {
        return;
    }
    // How many words of `new` the first words of `old` may have become: more than one number, where options repeat.
    let mut came = vec![BTreeSet::new(); old.len() + 1];
    came[0].insert(0);
    for at in 0..old.len() {
        let before = at.checked_sub(1).and_then(|before| old.get(before));
        for to in std::mem::take(&mut came[at]) {
            let changed = is(before, &known) && to < new.len();
            if changed || new.get(to) == Some(&old[at]) {
                came[at + 1].insert(to + 1);
            }
            if is(old.get(at), &["fw_cfg"]) && at + 2 <= old.len() {
                came[at + 2].insert(to);
            }
        }
    }
    let is_pair = |pair: &[OsString]| pair.len() == 2 && is(pair.first(), &["global", "fw_cfg"]);
    let fits = came[old.len()].iter().any(|to| new[*to..].chunks(2).all(is_pair));
    assert!(fits, "{old:?} became {new:?}");
}
