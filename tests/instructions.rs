//! How many instructions barfit executes, counted by valgrind and held against those of a bare parse or of a program
//! that does nothing: a regression shows here whatever else the machine does. What the numbers mean in time is in
//! docs/performance.md.
//!
//! Needs valgrind (`tests/install-programs`) and an optimised build: `tests/static test --test instructions`.
//! `data/hook.ld` is written here, too: see [`what_is_executed_stands_together`].

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::path::Path;
use std::process::Command;

use barfit::domain::{Document, Domain};
use barfit::host::HostFacts;
use barfit::plan::Change;
use barfit::rewrite::rewrite_document;

mod common;
#[path = "common/machine.rs"]
mod machine;

use common::{answer, examples, host};
use machine::{HOOK, Machine, nova};

/// Names a work, and how often it is to be done, to this program run by valgrind.
const ASKED: &str = "BARFIT_COUNTED_WORK";

/// Does its work so many times.
type Work = fn(u32);

const WORKS: &[(&str, Work)] = &[
    ("parse 20", |times| parse(&nova(4, 20_000), times)),
    ("parse 200", |times| parse(&nova(4, 200_000), times)),
    ("read 20", |times| read(&nova(4, 20_000), times)),
    ("read 200", |times| read(&nova(4, 200_000), times)),
    ("rewrite 20", |times| rewrite(&nova(4, 20_000), times)),
    ("rewrite 200", |times| rewrite(&nova(4, 200_000), times)),
    ("decide eight", |times| decide("eight-h100-sxm", "xeon-46-h100-sxm", times)),
    ("lay out eight", |times| lay_out("eight-h100-sxm", "xeon-46-h100-sxm", times)),
];

fn parse(text: &str, times: u32) {
    (0..times).for_each(|_| drop(black_box(roxmltree::Document::parse(text).expect("XML"))));
}

fn read(text: &str, times: u32) {
    (0..times).for_each(|_| drop(black_box(Domain::parse(text.as_bytes()).expect("a domain"))));
}

fn rewrite(text: &str, times: u32) {
    let changes: Vec<Change> = answer(text, &host("xeon-46-h100")).plan.changes;
    assert!(!changes.is_empty());
    for _ in 0..times {
        let document = Document::parse(text.as_bytes()).expect("XML");
        black_box(rewrite_document(&document, &changes).expect("a rewrite"));
    }
}

fn decide(domain: &str, machine: &str, times: u32) {
    let (text, facts): (String, HostFacts) = (examples()[domain].clone(), host(machine));
    let domain = Domain::parse(text.as_bytes()).expect("a domain");
    (0..times).for_each(|_| drop(black_box(common::decide(&domain, &facts))));
}

fn lay_out(domain: &str, machine: &str, times: u32) {
    let guest = answer(&examples()[domain], &host(machine)).plan.guest.expect("a guest");
    (0..times).for_each(|_| drop(black_box(barfit::layout::lay_out(&guest))));
}

/// Does what it is asked for. By itself it does nothing.
#[test]
fn work() {
    let Ok(asked) = std::env::var(ASKED) else { return };
    let (name, times) = asked.rsplit_once(' ').expect("a name and a number");
    let (_, work) = WORKS.iter().find(|(known, _)| *known == name).expect("a known work");
    work(times.parse().expect("a number"));
}

/// What valgrind has counted of a command.
fn counted(command: &mut Command) -> u64 {
    let output = command.output().expect("valgrind runs (Debian: valgrind)");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let number = said.lines().find_map(|line| line.split_once("Collected : "));
    number.unwrap_or_else(|| panic!("no number: {said}")).1.trim().parse().expect("a number")
}

const VALGRIND: [&str; 2] = ["--tool=callgrind", "--callgrind-out-file=/dev/null"];

/// What is not optimised is another program.
fn only_optimised() {
    if cfg!(debug_assertions) {
        panic!("run this as `tests/static test --test instructions`");
    }
}

/// Instructions of one work: what twice as many cost more.
fn instructions(name: &str) -> u64 {
    only_optimised();
    let times = 8;
    let run = |times: u64| {
        let own = std::env::current_exe().expect("this program");
        let mut command = Command::new("valgrind");
        command.args(VALGRIND).arg(own).args(["--exact", "work", "--test-threads=1"]);
        counted(command.env(ASKED, format!("{name} {times}")))
    };
    (run(2 * times) - run(times)) / times
}

#[allow(clippy::print_stdout, reason = "for who adjusts a bound")]
fn ratio(a: &str, b: &str) -> f64 {
    let (of_a, of_b) = (instructions(a), instructions(b));
    let ratio = of_a as f64 / of_b as f64;
    println!("{a}: {of_a}, {b}: {of_b}, {ratio:.2} times");
    ratio
}

#[test]
fn reading_costs_little_more_than_a_bare_parse() {
    assert!(ratio("read 20", "parse 20") < 1.4);
    assert!(ratio("rewrite 20", "parse 20") < 1.3);
}

#[test]
fn work_grows_with_the_text_and_no_faster() {
    for what in ["parse", "read", "rewrite"] {
        let grown = ratio(&format!("{what} 200"), &format!("{what} 20"));
        assert!(grown < 11.0, "{what}");
    }
}

#[test]
fn a_decision_is_less_than_a_parse() {
    assert!(ratio("decide eight", "parse 20") < 0.3);
    assert!(ratio("lay out eight", "parse 20") < 0.15);
}

/// The whole hook at `prepare`, beside a program that does nothing.
#[test]
#[allow(clippy::print_stdout, reason = "for who adjusts a bound")]
fn a_hook_is_little_more_than_a_process() {
    only_optimised();
    let barfit = Path::new(env!("CARGO_BIN_EXE_barfit"));
    let machine = Machine::new(&host("xeon-46-h100"), barfit, Path::new("/usr/bin/true"));
    let hook = machine.named("hook", HOOK, barfit);
    let of = |program: &Path, text: &str| {
        let domain = machine.path("domain.xml");
        std::fs::write(&domain, text).expect("written");
        let mut command = machine.command(Path::new("valgrind"));
        // cargo's, which has the loader look for libraries in many folders.
        command.env_remove("LD_LIBRARY_PATH").args(VALGRIND).arg(program).args([
            "instance-0000002a",
            "prepare",
            "begin",
            "-",
        ]);
        counted(command.stdin(std::fs::File::open(domain).expect("a domain")))
    };
    let nothing = of(Path::new("/bin/true"), "");
    // The first call looks the firmware up, and remembers it.
    of(&hook, &nova(4, 20_000));
    for (gpus, most) in [(4, 23.0), (0, 2.5)] {
        let ratio = of(&hook, &nova(gpus, 20_000)) as f64 / nothing as f64;
        println!("hook, {gpus} GPUs: {ratio:.1} times /bin/true ({nothing})");
        assert!(ratio < most, "{gpus} GPUs: {ratio:.1}");
    }
}

/// What the hook asks of the system at `prepare`, by strace: each call on a line.
fn asked_of_the_system(machine: &Machine, hook: &Path, text: &str) -> Vec<String> {
    let (domain, trace) = (machine.path("domain.xml"), machine.path("trace"));
    std::fs::write(&domain, text).expect("written");
    let mut command = machine.command(Path::new("strace"));
    command.env_remove("LD_LIBRARY_PATH").arg("-f").arg("-o").arg(&trace).arg(hook).args([
        "instance-0000002a",
        "prepare",
        "begin",
        "-",
    ]);
    let output = command.stdin(std::fs::File::open(domain).expect("a domain")).output();
    let output = output.expect("strace runs (Debian: strace)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let trace = std::fs::read_to_string(trace).expect("a trace");
    // A call during which another thread makes one takes two lines.
    trace.lines().filter(|line| !line.contains(" resumed>")).map(str::to_owned).collect()
}

/// A guest without passed-through devices is left at once: nothing is read of the machine, and no thread started. One of
/// SeaBIOS has nobody read what package brought a firmware.
#[test]
#[allow(clippy::print_stdout, reason = "for who adjusts a bound")]
fn a_hook_asks_for_what_the_guest_needs() {
    let barfit = Path::new(env!("CARGO_BIN_EXE_barfit"));
    let machine = Machine::new(&host("xeon-46-h100"), barfit, Path::new("/usr/bin/true"));
    let hook = machine.named("hook", HOOK, barfit);
    let uefi = nova(4, 20_000);
    let (start, rest) = uefi.split_once("    <loader ").expect("a loader");
    let (_, end) = rest.split_once("</nvram>\n").expect("its variables");
    let bios = format!("{start}{end}");
    for (what, text, read, most) in
        [("UEFI", &uefi, true, 225), ("BIOS", &bios, true, 270), ("no GPUs", &nova(0, 20_000), false, 95)]
    {
        // The first call makes folders.
        asked_of_the_system(&machine, &hook, text);
        let calls = asked_of_the_system(&machine, &hook, text);
        println!("{what}: {} calls", calls.len());
        let any = |word: &str| calls.iter().any(|call| call.contains(word));
        assert_eq!(any("/sys/bus/pci/devices"), read, "{what}: {calls:#?}");
        assert_eq!(any("/proc/cpuinfo"), read, "{what}: {calls:#?}");
        assert_eq!(any("clone"), read, "{what}: {calls:#?}");
        assert!(!any("/var/lib/dpkg/info"), "{what}: {calls:#?}");
        assert!(calls.len() < most, "{what}: {} calls: {calls:#?}", calls.len());
    }
}

/// Functions that hook and shim execute, by their names in the program.
fn executed(machine: &Machine, barfit: &Path) -> BTreeSet<String> {
    let hook = machine.named("hook", HOOK, barfit);
    let shim = machine.named("shim", "qemu-system-x86_64", barfit);
    let (with, without) = (nova(4, 20_000), nova(0, 20_000));
    let of_hook = |operation: &'static str| vec!["instance-0000002a", operation, "begin", "-"];
    let profile = machine.path("profile");
    let mut names = BTreeSet::new();
    for (program, words, text) in [
        (&hook, of_hook("prepare"), &with),
        (&hook, of_hook("prepare"), &with),
        (&hook, of_hook("prepare"), &without),
        (&hook, of_hook("migrate"), &with),
        (&hook, of_hook("started"), &with),
        (&hook, of_hook("release"), &with),
        (&shim, vec!["-version"], &without),
    ] {
        let domain = machine.path("domain.xml");
        std::fs::write(&domain, text).expect("written");
        let mut command = machine.command(Path::new("valgrind"));
        let out = format!("--callgrind-out-file={}", profile.display());
        command.env_remove("LD_LIBRARY_PATH").args(["--tool=callgrind", "--demangle=no", &out]);
        command.arg(program).args(words).stdin(std::fs::File::open(domain).expect("a domain"));
        assert!(command.output().expect("valgrind runs (Debian: valgrind)").status.success());
        // `fn=(12) NAME`, and `'2` behind it where it is entered again.
        let text = std::fs::read_to_string(&profile).expect("a profile");
        let functions = text.lines().filter_map(|line| line.trim_start_matches('c').strip_prefix("fn=("));
        let name = |line: &str| line.split_once(") ")?.1.split('\'').next().map(str::to_owned);
        names.extend(functions.filter_map(name));
    }
    names
}

/// A name without what differs from build to build, as a pattern.
fn pattern(name: &str) -> String {
    let mut name = name.to_owned();
    if let Some(at) = name.rfind("17h").filter(|at| name.starts_with("_ZN") && name.len() >= at + 20) {
        name.replace_range(at + 3..at + 19, "*");
    }
    let parts: Vec<&str> = name.split("Cs").collect();
    let known =
        |part: &&str| part.split_once('_').map_or((*part).to_owned(), |(_, rest)| format!("*_{rest}"));
    let rest: Vec<String> = parts[1..].iter().map(known).collect();
    if name.starts_with("_R") { [vec![parts[0].to_owned()], rest].concat().join("Cs") } else { name }
}

/// Writes `data/hook.ld` anew, by which the linker puts side by side what hook and shim execute. A name that is no longer
/// there does no harm, one that is missing costs a page fault and 64 KiB; to be done when the peak memory of a hook
/// (`./bench hook`) has grown:
///
/// `CARGO_PROFILE_RELEASE_STRIP=none cargo test --release --test instructions -- --ignored`
#[test]
#[ignore = "writes data/hook.ld"]
fn what_is_executed_stands_together() {
    only_optimised();
    let barfit = Path::new(env!("CARGO_BIN_EXE_barfit"));
    let machine = Machine::new(&host("xeon-46-h100"), barfit, Path::new("/usr/bin/true"));
    let executed = executed(&machine, barfit);
    let symbols =
        Command::new("nm").arg("--print-size").arg(barfit).output().expect("nm runs (Debian: binutils)");
    let symbols = String::from_utf8(symbols.stdout).expect("names");
    // Bytes that are executed, and all, by pattern.
    let mut bytes: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for line in symbols.lines() {
        let [_, size, "t" | "T", name] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
        if !name.starts_with("_ZN") && !name.starts_with("_R") {
            continue;
        }
        let size = u64::from_str_radix(size, 16).expect("a size");
        let sum = bytes.entry(pattern(name)).or_default();
        sum.0 += if executed.contains(name) { size } else { 0 };
        sum.1 += size;
    }
    bytes.retain(|_, (executed, _)| *executed > 0);
    assert!(bytes.len() > 200, "the program has no names: {bytes:?}");
    // One name stands for all of a generic function that is there for other types, too: those come last.
    let (own, shared): (Vec<_>, Vec<_>) =
        bytes.into_iter().partition(|(_, (executed, all))| executed * 2 >= *all);
    let mut script = "/* What hook and shim execute stands together: written by tests/instructions.rs. */\n\
                      SECTIONS {\n  .text.hook : {\n    *("
        .to_owned();
    let names: Vec<String> = own.into_iter().map(|(name, _)| format!(".text*.{name}")).collect();
    script += &names.join("\n      ");
    script += ")\n";
    for (name, _) in shared {
        script += &format!("    *(.text*.{name})\n");
    }
    script += "  }\n}\nINSERT BEFORE .text;\n";
    std::fs::write(common::root().join("data/hook.ld"), script).expect("written");
}
