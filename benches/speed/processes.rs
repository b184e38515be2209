//! Whole processes, started in turns on a machine of their own ([`crate::machine`]): wall-clock time, CPU time, memory.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use serde::{Deserialize, Serialize};

use crate::timing::undisturbed;

/// A program and how it is called.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) stdin: Option<PathBuf>,
}

/// What a program takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Taken {
    pub(crate) name: String,
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    /// Largest resident set, in KiB.
    pub(crate) memory: u64,
}

impl Taken {
    pub(crate) fn micros(&self) -> f64 {
        self.wall.as_secs_f64() * 1e6
    }

    pub(crate) fn cpu_micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6
    }
}

impl Program {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).stdout(Stdio::null()).stderr(Stdio::null());
        let stdin = self.stdin.as_ref().map(|path| File::open(path).expect("standard input"));
        command.stdin(stdin.map_or_else(Stdio::null, Stdio::from));
        command
    }

    /// Runs it once; gives wall-clock and CPU time.
    fn run(&self) -> (Duration, Duration) {
        let mut command = self.command();
        let (before, start) = (children(), Instant::now());
        let status = command.status().unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let wall = start.elapsed();
        assert!(status.success(), "{}: {status}", self.name);
        (wall, children() - before)
    }

    fn memory(&self) -> u64 {
        // This process is larger than what it measures, and a child begins as a copy of it: let a small one look.
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("memory");
        let stdin = self.stdin.as_ref().map(|path| File::open(path).expect("standard input"));
        let status = Command::new("time")
            .arg("--format=%M")
            .arg(format!("--output={}", file.display()))
            .arg(&self.path)
            .args(&self.arguments)
            .stdin(stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("`time` runs (Debian: time)");
        assert!(status.success(), "{}: {status}", self.name);
        fs::read_to_string(file).expect("a file").trim().parse().expect("a number")
    }
}

/// CPU time of all children that have ended.
fn children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the kernel counts");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).expect("time goes on"))
}

/// Runs the programs in turns.
pub(crate) fn in_turns(programs: &[Program], turns: usize) -> Vec<Taken> {
    let mut times = vec![(Vec::new(), Vec::new()); programs.len()];
    let journal = Journal::new();
    for turn in 0..turns + 2 {
        for (program, (walls, cpus)) in programs.iter().zip(&mut times) {
            let (wall, cpu) = program.run();
            journal.read();
            // The first two only warm up.
            if turn >= 2 {
                walls.push(wall);
                cpus.push(cpu);
            }
        }
    }
    let taken = |(program, (wall, cpu)): (&Program, (Vec<Duration>, Vec<Duration>))| Taken {
        name: program.name.clone(),
        wall: undisturbed(wall),
        cpu: undisturbed(cpu),
        memory: program.memory(),
    };
    programs.iter().zip(times).map(taken).collect()
}

/// The journal's socket, where a machine of one's own has none.
struct Journal(Option<UnixDatagram>);

impl Journal {
    fn new() -> Journal {
        let path = Path::new("/run/systemd/journal/socket");
        let socket = (!path.exists()).then(|| {
            fs::create_dir_all(path.parent()?).ok()?;
            let socket = UnixDatagram::bind(path).ok()?;
            socket.set_nonblocking(true).ok()?;
            Some(socket)
        });
        Journal(socket.flatten())
    }

    /// Takes what was sent, so that there is room for more.
    fn read(&self) {
        let mut line = [0; 4096];
        while self.0.as_ref().is_some_and(|socket| socket.recv(&mut line).is_ok()) {}
    }
}

/// What a process inside a machine is told to measure.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) programs: Vec<Program>,
    pub(crate) turns: usize,
}

/// Measures as standard input says, and prints what was taken.
pub(crate) fn inside() {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).expect("a job");
    let job: Job = serde_json::from_str(&text).expect("a job");
    println!("{}", serde_json::to_string(&in_turns(&job.programs, job.turns)).expect("figures"));
}
