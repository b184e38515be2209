//! libvirt's qemu hook: what barfit does when the daemon calls `/etc/libvirt/hooks/qemu NAME OPERATION …`.
//!
//! `prepare` decides and leaves a plan for the shim; `started` looks whether the running QEMU has it; `release` takes
//! the plan away. `restore` is remembered, because the `prepare` that follows it must give the guest what it had when it
//! was saved and nothing else. Every other operation, known or not, is none of barfit's business. The operation is
//! decided on before the XML is looked at: a failure at `started` or `reconnect` kills a running guest, so those exit 0
//! whatever happens, a panic included. Nothing is printed to standard output: libvirt would take it for a domain
//! at `migrate` and `restore`. Calling libvirt back would deadlock, so nothing here does.
//!
//! What most calls are about costs least: an operation that is none of barfit's business, a guest without passed-through
//! devices ([`super::glance`]). What may block, beyond `/run`, is done under a watch.
//! Source: libvirt docs/hooks.rst, src/qemu/qemu_process.c, qemu_saveimage.c (9.0, 11.3); measured with 9.0.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::fault;
use super::glance::{Glance, glance};
use super::here;
use super::journal::{self, Priority};
use super::plan_file::{self, PlanFile, Plans, write_atomically};
use super::shim;
use super::starts::{self, Start};
use crate::domain::Domain;
use crate::guest::Source;
use crate::host::{Host, HostFacts};
use crate::plan::{Answer, Change, Mode, Policy, Request, Verdict, answer};
use crate::rewrite;
use crate::text::printable;

/// What to tell libvirt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// 0, or 1 to refuse a start.
    pub exit: u8,
    /// For standard error: what the user of `virsh start` reads when the start is refused.
    pub message: Option<String>,
}

/// What each guest was started with, kept over reboots for the guests that are saved and restored.
pub const APPLIED: &str = "var/lib/barfit/applied";
/// Guests whose `restore` has begun.
const RESTORING: &str = "run/barfit/restoring";
/// libvirt waits for a hook without end; barfit does not.
const PATIENCE: Duration = Duration::from_secs(5);
/// Operations for which the domain is read.
const OURS: [&str; 4] = ["prepare", "started", "release", "restore"];
const TOO_LONG: &str = "it took too long";
/// No domain XML is larger.
const LARGEST_XML: usize = 16 << 20;
/// Nearly all are smaller than this, in bytes.
const USUAL_XML: usize = 64 << 10;
/// Enough for a line to the journal, in bytes.
const WATCHS_STACK: usize = 128 << 10;

/// Whether an operation of libvirt's (the second of its arguments) is one for which the domain is read.
pub fn reads_the_domain(arguments: &[OsString]) -> bool {
    arguments.get(1).is_some_and(|word| OURS.iter().any(|operation| word == operation))
}

/// Runs the hook. `arguments` are libvirt's, without the program's name; `input` is the domain.
///
/// Takes at most a few seconds: a file of `/sys` that blocks ends as a guest started without barfit. Who cannot be
/// waited for any longer cannot be stopped either, so that the whole process then ends.
pub fn run(root: &Path, arguments: &[OsString], input: impl AsFd) -> Reply {
    let text = |at: usize| arguments.get(at).map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
    let (name, operation) = (text(0), text(1));
    let hook = Hook::new(root, &name, &operation);
    let answered = panic::catch_unwind(AssertUnwindSafe(|| hook.run(input)));
    answered.unwrap_or_else(|_| hook.give_up("it failed; this is a bug in barfit"))
}

struct Hook<'a> {
    root: &'a Path,
    name: &'a str,
    operation: &'a str,
    /// When patience ends.
    until: Instant,
    /// Whether the process then ends.
    watched: Cell<bool>,
}

impl<'a> Hook<'a> {
    fn new(root: &'a Path, name: &'a str, operation: &'a str) -> Hook<'a> {
        Hook { root, name, operation, until: Instant::now() + PATIENCE, watched: Cell::new(false) }
    }

    fn run(&self, input: impl AsFd) -> Reply {
        let operation = self.operation;
        if fault::is_asked_for(self.root) {
            self.watch();
        }
        // Any call is a chance to notice a new QEMU.
        for shim in shim::refresh(self.root) {
            let text =
                format!("QEMU is newer than {}: libvirt will ask for its capabilities again", shim.display());
            self.log(Priority::Info, &text, None);
        }
        fault::inject(self.root, operation);
        if !OURS.contains(&operation) {
            return Reply::default();
        }
        let mut xml = Vec::with_capacity(USUAL_XML);
        match self.read(input, &mut xml) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return self.give_up(TOO_LONG);
            }
            // A daemon that dies half-way leaves a half document, which then does not parse.
            Err(error) => {
                let text = format!("{}: libvirt's domain cannot be read to its end: {error}", self.name);
                self.log(Priority::Error, &text, None);
            }
        }
        let seen = glance(&xml);
        if operation == "prepare"
            && let Some(Glance { uuid, nothing_of_the_host: true }) = seen
            && !here::has_policy(self.root)
        {
            return if self.begin(uuid) { self.prepare_restored(uuid) } else { Reply::default() };
        }
        let uuid = seen.map(|seen| seen.uuid.to_owned());
        let uuid = || uuid.or_else(|| self.watch().then(|| Domain::parse(&xml).ok())??.uuid);
        match operation {
            "prepare" => return self.prepare(&xml),
            "started" => self.started(&uuid().unwrap_or_default()),
            "restore" => self.restore(&uuid().unwrap_or_default()),
            _ => self.release(&uuid().unwrap_or_default()),
        }
        Reply::default()
    }

    /// Reads the domain. No longer than patience lasts: who has stopped feeding a pipe holds up no guest.
    fn read(&self, input: impl AsFd, xml: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let left = Timespec::try_from(self.until.saturating_duration_since(Instant::now())).ok();
            let ready = match poll(&mut [PollFd::new(&input, PollFlags::IN)], left.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                ready => ready?,
            };
            if ready == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            xml.reserve(USUAL_XML / 2);
            match rustix::io::read(&input, rustix::buffer::spare_capacity(xml)) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(0) => return Ok(()),
                Ok(_) if xml.len() > LARGEST_XML => return Ok(()),
                Ok(_) => {}
            }
        }
    }

    /// Ends the process when patience does, whatever it then waits for. Asked for before anything is done that may last:
    /// most calls have nothing of that kind. `false` where it cannot be had; then that is not to be done.
    fn watch(&self) -> bool {
        if self.watched.get() {
            return true;
        }
        let (root, name, operation) = (self.root.to_owned(), self.name.to_owned(), self.operation.to_owned());
        let until = self.until;
        let watch = move || {
            thread::sleep(until.saturating_duration_since(Instant::now()));
            let Reply { exit, .. } = Hook::new(&root, &name, &operation).give_up(TOO_LONG);
            std::process::exit(i32::from(exit));
        };
        let thread = thread::Builder::new().name("watch".to_owned()).stack_size(WATCHS_STACK).spawn(watch);
        self.watched.set(thread.is_ok());
        if thread.is_err() {
            self.give_up("the system has no thread left");
        }
        self.watched.get()
    }

    fn give_up(&self, why: &str) -> Reply {
        let text = format!("{}: {why}; the guest goes on without barfit", self.name);
        self.log(Priority::Error, &text, None);
        Reply::default()
    }

    /// What begins every start: a stale plan goes away. Whether the guest is being restored.
    fn begin(&self, uuid: &str) -> bool {
        if let Err(error) = Plans::at(self.root).remove(uuid) {
            let text = format!("{}: a stale plan stays: {error}", self.name);
            self.log(Priority::Error, &text, Some(uuid));
        }
        self.take_restoring(uuid)
    }

    fn prepare(&self, xml: &[u8]) -> Reply {
        if !self.watch() {
            return Reply::default();
        }
        let domain = match Domain::parse(xml) {
            Ok(domain) => domain,
            Err(error) => {
                let text = format!("{}: the domain cannot be read: {error}", self.name);
                self.log(Priority::Warning, &text, None);
                return Reply::default();
            }
        };
        let uuid = domain.uuid.clone().unwrap_or_default();
        if self.begin(&uuid) {
            return self.prepare_restored(&uuid);
        }
        let policy = self.policy();
        let nothing = Policy::default();
        if !here::passes_through(&domain, policy.as_ref().unwrap_or(&nothing)) {
            return Reply::default();
        }
        let (host, host_is) = self.facts(&domain);
        let request = Request {
            domain: &domain,
            host: &host,
            host_is,
            policy: policy.as_ref().unwrap_or(&nothing),
            firmware: None,
            assume_gpu: None,
        };
        let answer = answer(&request);
        if answer.verdict == Verdict::NoPassthrough {
            return Reply::default();
        }
        // A policy that cannot be read allows nothing: neither a correction nor a refusal.
        let mode = if policy.is_some() { answer.settings.mode } else { Mode::Observe };
        self.deliver(&domain, &uuid, &answer, mode)
    }

    /// Leaves the plan, tells what will happen, and in strict mode refuses what would lose a GPU.
    fn deliver(&self, domain: &Domain, uuid: &str, answer: &Answer, mode: Mode) -> Reply {
        let total = answer.assembled.gpus();
        let before = answer.gpus_placed(answer.present.as_ref());
        let after = answer.gpus_placed(answer.plan.layout.as_ref());
        let planned: Vec<String> = answer.plan.changes.iter().map(ToString::to_string).collect();
        let emulator = domain.emulator.as_deref();
        let shimmed = emulator.is_some_and(|path| shim::is_shim(self.root, path));
        let mut applied = None;
        let summary = if answer.verdict == Verdict::Unknown {
            format!("unknown whether its devices are placed: {}", answer.assembled.unknown.join("; "))
        } else if planned.is_empty() {
            format!("{before} of {total} GPUs get an address, nothing to change")
        } else if mode == Mode::Observe {
            applied = Some(false);
            format!(
                "{before} of {total} GPUs get an address; {} would give {after}, but the policy only observes",
                planned.join(" and ")
            )
        } else if !shimmed {
            applied = Some(false);
            format!(
                "{before} of {total} GPUs get an address; {} would give {after}, but the emulator {} is not barfit's \
                 shim, so nothing changes at this start. `barfit apply` makes the change for the next one",
                planned.join(" and "),
                emulator.map_or_else(|| "(none given)".to_owned(), |path| path.display().to_string())
            )
        } else {
            format!(
                "{before} of {total} GPUs get an address; with {} {after} of {total} do",
                planned.join(" and ")
            )
        };
        let mut delivered = shimmed && mode != Mode::Observe;
        if delivered && !planned.is_empty() {
            let plan = self.write_plan(uuid, &answer.plan.changes, &summary);
            if let Err(error) = plan {
                delivered = false;
                let text = format!(
                    "{}: the plan cannot be written: {error}; nothing changes at this start",
                    self.name
                );
                self.log(Priority::Error, &text, Some(uuid));
            }
        }
        self.remember_changes(uuid, if delivered { &answer.plan.changes } else { &[] });
        let lost = if delivered { total - after.min(total) } else { total - before.min(total) };
        let starts =
            !matches!(if delivered { answer.plan.verdict } else { answer.verdict }, Verdict::WillNotStart);
        let priority = if lost == 0 && starts { Priority::Info } else { Priority::Warning };
        self.log(priority, &format!("{}: {summary}", self.name), Some(uuid));
        let start = Start {
            uuid: uuid.to_owned(),
            name: self.name.to_owned(),
            time: plan_file::now(),
            verdict: answer.verdict,
            planned,
            applied,
            summary: summary.clone(),
        };
        // Only `status` misses it.
        let _ = starts::remember(self.root, &start);
        if mode == Mode::Strict && answer.verdict != Verdict::Unknown && (lost > 0 || !starts) {
            let name = printable(self.name);
            return Reply {
                exit: 1,
                message: Some(format!(
                    "barfit refuses to start {name}: {lost} of {total} GPUs would get no address. {summary}. \
                     `barfit check` says why; the policy's mode is strict"
                )),
            };
        }
        Reply::default()
    }

    /// A saved guest gets what it had when it was saved: its width and its fw_cfg files are part of its state.
    fn prepare_restored(&self, uuid: &str) -> Reply {
        if !self.watch() {
            return Reply::default();
        }
        let changes = fs::read(self.root.join(APPLIED).join(format!("{uuid}.json")));
        let changes: Vec<Change> =
            changes.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let summary = if changes.is_empty() {
            "restored as it was saved".to_owned()
        } else {
            let words: Vec<String> = changes.iter().map(ToString::to_string).collect();
            format!("restored with what it was started with: {}", words.join(" and "))
        };
        self.log(Priority::Info, &format!("{}: {summary}", self.name), Some(uuid));
        if !changes.is_empty()
            && let Err(error) = self.write_plan(uuid, &changes, &summary)
        {
            let text = format!("{}: the plan cannot be written: {error}", self.name);
            self.log(Priority::Error, &text, Some(uuid));
        }
        Reply::default()
    }

    fn write_plan(&self, uuid: &str, changes: &[Change], summary: &str) -> io::Result<()> {
        let plan = PlanFile {
            schema: plan_file::SCHEMA.to_owned(),
            uuid: uuid.to_owned(),
            name: journal::bounded(self.name).into_owned(),
            boot_id: plan_file::boot_id(self.root)?,
            written: plan_file::since_boot(),
            changes: changes.to_vec(),
            summary: journal::bounded(summary).into_owned(),
        };
        Plans::at(self.root).write(&plan).map(|_| ())
    }

    fn restore(&self, uuid: &str) {
        if plan_file::is_uuid(uuid) {
            let time = plan_file::since_boot().to_string();
            let written = write_atomically(&self.root.join(RESTORING).join(uuid), time.as_bytes());
            if let Err(error) = written {
                let text = format!("{}: that it is restored cannot be kept: {error}", self.name);
                self.log(Priority::Error, &text, Some(uuid));
            }
        }
    }

    /// Whether this guest's `restore` has begun within the last minutes; asked once.
    fn take_restoring(&self, uuid: &str) -> bool {
        if !plan_file::is_uuid(uuid) {
            return false;
        }
        let path = self.root.join(RESTORING).join(uuid);
        let begun = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
            begun => begun,
        };
        let _ = fs::remove_file(&path);
        let begun: Option<u64> = begun.ok().and_then(|text| text.parse().ok());
        begun.is_some_and(|at| plan_file::since_boot().abs_diff(at) < plan_file::FRESH.as_secs())
    }

    fn remember_changes(&self, uuid: &str, changes: &[Change]) {
        if !plan_file::is_uuid(uuid) {
            return;
        }
        let path = self.root.join(APPLIED).join(format!("{uuid}.json"));
        if changes.is_empty() {
            let _ = fs::remove_file(path);
        } else if let Ok(bytes) = serde_json::to_vec(changes) {
            // Most starts are like the last one, and a disk is slow.
            if fs::read(&path).is_ok_and(|old| old == bytes) {
                return;
            }
            let written = write_atomically(&path, &bytes);
            if let Err(error) = written {
                let text = format!("{}: what it is started with cannot be kept: {error}", self.name);
                self.log(Priority::Warning, &text, Some(uuid));
            }
        }
    }

    fn started(&self, uuid: &str) {
        let plan = match Plans::at(self.root).read(uuid) {
            Ok(Some(plan)) => plan,
            Ok(None) => return,
            Err(error) => {
                self.log(Priority::Warning, &format!("{}: {error}", self.name), Some(uuid));
                return;
            }
        };
        // A process that cannot be looked at blocks who tries.
        if !self.watch() {
            return;
        }
        let argv = running_argv(self.root, self.name);
        let applied = argv.as_ref().map(|argv| rewrite::argv::rewrite(argv.clone(), &plan.changes) == *argv);
        let words: Vec<String> = plan.changes.iter().map(ToString::to_string).collect();
        let (priority, text) = match applied {
            Some(true) => (Priority::Info, format!("runs with {}", words.join(" and "))),
            Some(false) => (
                Priority::Warning,
                format!("runs without {}: the shim did not apply the plan", words.join(" and ")),
            ),
            None => (
                Priority::Warning,
                "its QEMU process cannot be read; whether the plan is applied is unknown".into(),
            ),
        };
        self.log(priority, &format!("{}: {text}", self.name), Some(uuid));
        if let Some(start) = starts::recall(self.root, uuid) {
            let _ = starts::remember(self.root, &Start { applied, ..start });
        }
    }

    fn release(&self, uuid: &str) {
        if !self.watch() {
            return;
        }
        let plans = Plans::at(self.root);
        let _ = plans.remove(uuid);
        plans.sweep(uuid);
        if plan_file::is_uuid(uuid) {
            plan_file::sweep(&self.root.join(APPLIED).join(format!("{uuid}.json")));
            starts::sweep(self.root, uuid);
            plan_file::sweep(&self.root.join(RESTORING).join(uuid));
        }
        // A restore that came to nothing says nothing about the next start.
        let _ = self.take_restoring(uuid);
    }

    /// The policy; `None` when a file of it cannot be used.
    fn policy(&self) -> Option<Policy> {
        here::policy(self.root)
            .inspect_err(|why| {
                let text =
                    format!("{}: the policy cannot be used, so barfit only observes: {why}", self.name);
                self.log(Priority::Error, &text, None);
            })
            .ok()
    }

    fn facts(&self, domain: &Domain) -> (HostFacts, Source) {
        let given = here::host_file(self.root).unwrap_or_else(|why| {
            let text = format!("{}: the host file is left out: {why}", self.name);
            self.log(Priority::Error, &text, None);
            None
        });
        let (host, source, notes) = here::facts(&Host::at(self.root), domain, given);
        for note in notes {
            self.log(Priority::Warning, &format!("{}: {note}", self.name), None);
        }
        (host, source)
    }

    fn log(&self, priority: Priority, text: &str, uuid: Option<&str>) {
        let fields = [
            ("BARFIT_OPERATION", self.operation),
            ("BARFIT_DOMAIN", self.name),
            ("BARFIT_UUID", uuid.unwrap_or_default()),
        ];
        // Standard error of a hook that succeeds goes nowhere; there is no third place to say it.
        let _ = journal::send(self.root, priority, text, &fields);
    }
}

/// The argv of a guest's running QEMU, by the pid file that libvirt keeps.
pub(super) fn running_argv(root: &Path, name: &str) -> Option<Vec<OsString>> {
    if name.contains('/') {
        return None;
    }
    let pid = fs::read_to_string(root.join("run/libvirt/qemu").join(format!("{name}.pid"))).ok()?;
    let pid: u32 = pid.trim().parse().ok()?;
    let line = fs::read(root.join("proc").join(pid.to_string()).join("cmdline")).ok()?;
    let words = line.strip_suffix(b"\0").unwrap_or(&line).split(|byte| *byte == 0);
    Some(words.map(|word| OsString::from_vec(word.to_vec())).collect())
}
