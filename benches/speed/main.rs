//! Measures barfit beside what it is compared with, and prints one table. Run it as `./bench`, which installs and
//! builds what it needs. Everything is measured in one run on one machine, in turns.

// A benchmark speaks on standard output.
#![allow(clippy::print_stdout)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use barfit::domain::Domain;
use barfit::host::HostFacts;
use barfit::plan::Policy;
use barfit::prove::{FirmwareFiles, Limits, Rig, boot, stand_in};
use barfit::report::Check;

mod library;
#[path = "../../tests/common/machine.rs"]
mod machine;
mod processes;
mod table;
mod timing;

use library::decide;
use machine::{HOOK, Machine, SHIM, nova};
use processes::{Job, Program, Taken};
use table::Row;

/// How often each process is started.
const TURNS: usize = 150;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|word| word == "--inside") {
        return processes::inside();
    }
    let wanted = |part: &str| {
        let parts: Vec<&String> = arguments.iter().skip(1).filter(|word| !word.starts_with("--")).collect();
        parts.is_empty() || parts.iter().any(|word| *word == part)
    };
    let facts = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/hosts/xeon-46-h100.json");
    let host = HostFacts::from_json(&fs::read_to_string(&facts).expect("a host")).expect("a host");
    let mut rows = Vec::new();
    let mut show = |part: &str, heading: &str, measure: &dyn Fn() -> Vec<Row>| {
        if wanted(part) {
            let new = measure();
            table::print(heading, &new);
            rows.extend(new);
        }
    };
    show("hook", "hook: a whole process, prepare, 20 KB of Nova's XML, 4 GPUs, plan written", &|| {
        hook(&host)
    });
    show("shim", "shim: a whole process", &|| shim(&host));
    show("library", "in process", &|| {
        let mut rows = library::documents(&host);
        rows.extend(library::layouts(&host));
        rows
    });
    show("many", "many domains", &|| many(&host, &facts));
    show("prove", "prove", &|| prove(&host));
    let met: Vec<bool> = rows.iter().filter_map(Row::met).collect();
    let missed = met.iter().filter(|met| !**met).count();
    println!("{} of {} targets are met", met.len() - missed, met.len());
    if missed > 0 {
        std::process::exit(1);
    }
}

/// The barfit of this build, linked dynamically against glibc.
fn barfit() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_barfit"))
}

/// Builds by name, as `./bench` hands them over in a variable: `NAME=PATH` in words.
fn builds_in(variable: &str) -> Vec<(String, PathBuf)> {
    let words = std::env::var(variable).unwrap_or_default();
    let pair = |word: &str| word.split_once('=').map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
    words.split_whitespace().filter_map(pair).collect()
}

/// Runs the programs on the machine.
fn on(machine: &Machine, programs: Vec<Program>) -> Vec<Taken> {
    let own = std::env::current_exe().expect("this program");
    let mut child = machine
        .command(&own)
        .arg("--inside")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare runs (Debian: util-linux)");
    let job = serde_json::to_vec(&Job { programs, turns: TURNS }).expect("a job");
    child.stdin.take().expect("a pipe").write_all(&job).expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "the measuring process failed");
    serde_json::from_slice(&output.stdout).expect("figures")
}

fn program<A: AsRef<str>>(
    name: &str,
    path: impl Into<PathBuf>,
    arguments: impl IntoIterator<Item = A>,
    stdin: Option<&Path>,
) -> Program {
    Program {
        name: name.to_owned(),
        path: path.into(),
        arguments: arguments.into_iter().map(|word| word.as_ref().to_owned()).collect(),
        stdin: stdin.map(Path::to_owned),
    }
}

/// A statically linked program that does nothing.
fn empty_static(machine: &Machine) -> PathBuf {
    let path = machine.path("empty");
    let mut compiler = Command::new("cc")
        .args(["-O2", "-static", "-x", "c", "-", "-o"])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a C compiler (Debian: gcc, libc6-dev)");
    let source = b"int main(void) { return 0; }\n";
    compiler.stdin.take().expect("a pipe").write_all(source).expect("written");
    assert!(compiler.wait().expect("it ends").success(), "cc -static");
    path
}

fn hook(host: &HostFacts) -> Vec<Row> {
    let machine = Machine::new(host, &barfit(), Path::new("/usr/bin/true"));
    let write = |name: &str, text: String| {
        let path = machine.path(name);
        fs::write(&path, text).expect("written");
        path
    };
    let (four, none) = (write("four.xml", nova(4, 20_000)), write("none.xml", nova(0, 20_000)));
    let libvirt = ["instance-0000002a", "prepare", "begin", "-"];
    let nothing: [&str; 0] = [];
    let mut programs = vec![
        program("/bin/true", "/bin/true", nothing, None),
        program("an empty static program", empty_static(&machine), nothing, None),
    ];
    // What no hook that reads its domain can be below.
    for (build, path) in builds_in("BARFIT_BARE") {
        programs.push(program(&format!("a bare parse of that domain, {build}"), path, nothing, Some(&four)));
    }
    let mut builds = vec![("glibc".to_owned(), barfit())];
    builds.extend(builds_in("BARFIT_STATIC"));
    for (build, path) in &builds {
        let path = machine.named(build, HOOK, path);
        programs.push(program(&format!("hook, {build}"), &path, libvirt, Some(&four)));
        programs.push(program(&format!("hook without GPUs, {build}"), &path, libvirt, Some(&none)));
        let started = ["instance-0000002a", "migrate", "begin", "-"];
        programs.push(program(
            &format!("hook, an operation that is not its business, {build}"),
            &path,
            started,
            Some(&four),
        ));
    }
    let naive = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/speed/naive_hook.py");
    let naive = naive.to_str().expect("text");
    programs.push(program("python3 doing nothing", "/usr/bin/python3", ["-c", ""], None));
    programs.push(program("python3 and lxml, the naive hook", "/usr/bin/python3", [naive], Some(&four)));
    let edit = ["ed", "-s", "/domain/cpu", "-t", "elem", "-n", "maxphysaddr", "-v", ""];
    programs.push(program("xmlstarlet, the same edit", "/usr/bin/xmlstarlet", edit, Some(&four)));
    programs.push(program("virsh --version", "/usr/bin/virsh", ["--version"], None));

    let taken = on(&machine, programs);
    let (nothing, empty) = (&taken[0], &taken[1]);
    let mut rows = Vec::new();
    for one in &taken {
        let name = &one.name;
        let ratio = one.micros() / nothing.micros();
        let label = format!("{name}: {:.2} ms, beside /bin/true", one.micros() / 1e3);
        let target = match (name.strip_prefix("hook, "), name.as_str()) {
            (Some("glibc"), _) => Some(2.5),
            (Some(build), _) if !build.starts_with("an ") => Some(1.5),
            _ => None,
        };
        rows.push(match target {
            Some(target) => Row::at_most(label, ratio, "x", target),
            None => Row::plain(label, ratio, "x"),
        });
        if target.is_some() {
            let above = (one.cpu_micros() - empty.cpu_micros()) / 1e3;
            rows.push(Row::at_most(format!("{name}: user+sys above the empty program"), above, "ms", 0.3));
            rows.push(Row::at_most(format!("{name}: peak memory"), one.memory as f64 / 1024.0, "MiB", 4.0));
        }
    }
    rows.push(Row::plain("an empty static program: peak memory", empty.memory as f64 / 1024.0, "MiB"));
    rows
}

fn shim(host: &HostFacts) -> Vec<Row> {
    let real = Path::new("/usr/bin/qemu-system-x86_64");
    let mut rows = Vec::new();
    let mut builds = vec![("glibc".to_owned(), barfit())];
    builds.extend(builds_in("BARFIT_STATIC"));
    for (build, path) in builds {
        // The real QEMU asked for its version, and a program that does nothing with a guest's whole command line, for
        // which there is a plan.
        for (what, emulator) in [
            ("-version of the real QEMU", real),
            ("200 words and a plan, before /bin/true", Path::new("/usr/bin/true")),
        ] {
            let machine = Machine::new(host, &path, emulator);
            let hook = machine.named("hook", HOOK, &path);
            let domain = machine.path("four.xml");
            fs::write(&domain, nova(4, 20_000)).expect("written");
            let words = if emulator == real { vec!["-version".to_owned()] } else { command_line() };
            let taken = on(
                &machine,
                vec![
                    program("hook", hook, ["instance-0000002a", "prepare", "begin", "-"], Some(&domain)),
                    program("direct", emulator, &words, None),
                    program("shim", SHIM, &words, None),
                ],
            );
            let above = (taken[2].micros() - taken[1].micros()) / 1e3;
            rows.push(Row::at_most(
                format!("{build}: {what}: above exec without the shim"),
                above,
                "ms",
                1.0,
            ));
        }
    }
    rows
}

/// A QEMU command line of 200 words, as libvirt makes one.
fn command_line() -> Vec<String> {
    let mut words: Vec<String> = "-name guest=instance-0000002a,debug-threads=on -S -machine pc-q35-6.2,usb=off,dump-guest-core=off \
        -accel kvm -cpu Skylake-Server -m size=536870912k -overcommit mem-lock=off -smp 64,sockets=64,cores=1,threads=1 \
        -uuid 1d8a3c54-9b0e-4f5c-8f6d-2b7e90c1a411 -no-user-config -nodefaults"
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    for port in 1.. {
        if words.len() >= 200 {
            break;
        }
        words.push("-device".to_owned());
        words.push(format!("{{\"driver\":\"pcie-root-port\",\"port\":{port},\"chassis\":{port},\"id\":\"pci.{port}\",\"bus\":\"pcie.0\",\"addr\":\"0x2\"}}"));
    }
    words
}

/// 20,000 domains in one process.
fn many(host: &HostFacts, facts: &Path) -> Vec<Row> {
    const FILES: usize = 20_000;
    let folder = tempfile::tempdir().expect("a folder");
    let texts: Vec<String> = (0..8).map(|n| nova(n % 5, 6_000 + 2_000 * n)).collect();
    let files: Vec<PathBuf> = (0..FILES)
        .map(|n| {
            let path = folder.path().join(format!("{n:05}.xml"));
            fs::write(&path, &texts[n % texts.len()]).expect("written");
            path
        })
        .collect();
    let policy = Policy::default();
    let one = |path: &PathBuf| {
        let text = fs::read(path).expect("a file");
        let domain = Domain::parse(&text).expect("a domain");
        let answer = decide(&domain, host, &policy);
        Check::new(&domain, &answer).to_line().expect("JSON")
    };
    let cores = available_parallelism().expect("cores").get();
    let check = |files: &[PathBuf]| {
        let log = folder.path().join("memory");
        let start = Instant::now();
        let status = Command::new("time")
            .arg("--format=%M")
            .arg(format!("--output={}", log.display()))
            .arg(barfit())
            .args(["check", "--format", "json", "--host"])
            .arg(facts)
            .args(files)
            .stdout(Stdio::null())
            .status()
            .expect("`time` runs (Debian: time)");
        let wall = start.elapsed();
        assert_eq!(status.code(), Some(1), "some do not fit");
        let log = fs::read_to_string(&log).expect("a file");
        let memory: f64 = log.lines().last().expect("a line").parse().expect("a number");
        (wall.as_secs_f64(), memory / 1024.0)
    };
    // In turns, for what else this machine does changes from second to second.
    let (mut alone, mut together, mut memory) = (f64::MAX, f64::MAX, 0.0);
    for _ in 0..3 {
        let start = Instant::now();
        files.iter().take(2000).for_each(|path| drop(one(path)));
        alone = alone.min(start.elapsed().as_secs_f64() / 2000.0);
        let (wall, most) = check(&files);
        (together, memory) = (together.min(wall / FILES as f64), most);
    }
    let (_, few) = check(&files[..2000]);
    let mut validate = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let status = Command::new("virt-xml-validate")
            .arg(&files[0])
            .arg("domain")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let _ = status.expect("virt-xml-validate runs (Debian: libvirt-clients, libxml2-utils)");
        validate.push(start.elapsed());
    }
    let validate = timing::undisturbed(validate).as_secs_f64();
    vec![
        Row::plain("one domain in process, file to JSON", alone * 1e6, "µs"),
        Row::plain("`barfit check` of 20,000 files, a domain", together * 1e6, "µs"),
        Row::at_least(
            format!("`barfit check` / ({cores} cores x the rate in process)"),
            alone / cores as f64 / together * 100.0,
            "%",
            70.0,
        ),
        Row::at_least("virt-xml-validate of one domain / that", validate / together, "x", 100.0),
        Row::plain("peak memory, 20,000 files", memory, "MiB"),
        // The arguments themselves are kept, by the kernel and by clap; a domain's text alone is 30 times this.
        Row::at_most(
            "more of that than of 2,000 files, a file more",
            (memory - few) * 1024.0 / 18.0,
            "B",
            300.0,
        ),
    ]
}

/// The real firmware's answer beside the moment at which it has written the last BAR.
fn prove(host: &HostFacts) -> Vec<Row> {
    let firmware = Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd");
    let files = FirmwareFiles::beside(firmware).expect("OVMF (Debian: ovmf)");
    let rig = Rig::new(PathBuf::from("/usr/bin/qemu-system-x86_64"), files, barfit::prove::Accel::Tcg);
    let domain = Domain::parse(nova(4, 0).as_bytes()).expect("a domain");
    let guest = decide(&domain, host, &Policy::default()).plan.guest.expect("a guest");
    let stand = stand_in(&guest).expect("stand-ins");
    let limits = Limits::default();
    let one = || {
        let start = Instant::now();
        let observed = boot(&rig, &stand, &limits).expect("a boot");
        (start.elapsed(), observed.settled)
    };
    let (whole, settled) = one();
    let cores = available_parallelism().expect("cores").get();
    let start = Instant::now();
    std::thread::scope(|scope| {
        (0..cores).for_each(|_| drop(scope.spawn(one)));
    });
    let several = start.elapsed();
    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    vec![
        Row::plain("one boot, from start to answer", whole.as_secs_f64(), "s"),
        Row::at_most("start to answer / start to the last BAR written", ratio(whole, settled), "x", 1.3),
        Row::at_most(format!("{cores} at once on {cores} cores / one"), ratio(several, whole), "x", 1.5),
    ]
}
