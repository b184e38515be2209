//! libvirt's qemu hook: what barfit does when the daemon calls `/etc/libvirt/hooks/qemu NAME OPERATION …`.
//!
//! `prepare` decides and leaves a plan for the shim; `started` looks whether the running QEMU has it; `release` takes
//! the plan away. `restore` is remembered, because the `prepare` that follows it must give the guest what it had when it
//! was saved and nothing else. Every other operation, known or not, is none of barfit's business. The operation is
//! decided on before the XML is looked at: a failure at `started` or `reconnect` kills a running guest, so those exit 0
//! whatever happens, a panic included. Nothing is printed to standard output: libvirt would take it for a domain
//! at `migrate` and `restore`. Calling libvirt back would deadlock, so nothing here does.
//! Source: libvirt docs/hooks.rst, src/qemu/qemu_process.c, qemu_saveimage.c (9.0, 11.3); measured with 9.0.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use super::fault;
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
/// No domain XML is larger.
const LARGEST_XML: u64 = 16 << 20;

/// Runs the hook. `arguments` are libvirt's, without the program's name; `input` is the domain.
///
/// Takes at most a few seconds: a file of `/sys` that blocks ends as a guest started without barfit.
pub fn run(root: &Path, arguments: &[OsString], input: impl Read + Send + 'static) -> Reply {
    let text = |at: usize| arguments.get(at).map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
    let (name, operation) = (text(0), text(1));
    let (send, receive) = mpsc::channel();
    let (at, about) = (root.to_owned(), name.clone());
    let of = operation.clone();
    let work = move || {
        let _ = send.send(Hook { root: &at, name: &about }.run(&of, input));
    };
    let started = std::thread::Builder::new().name("hook".to_owned()).spawn(work);
    let failure = match started.map(|_| receive.recv_timeout(PATIENCE)) {
        Ok(Ok(reply)) => return reply,
        Ok(Err(mpsc::RecvTimeoutError::Timeout)) => "it took too long",
        Ok(Err(mpsc::RecvTimeoutError::Disconnected)) => "it failed; this is a bug in barfit",
        Err(_) => "the system has no thread left",
    };
    let hook = Hook { root, name: &name };
    hook.log(
        Priority::Error,
        &operation,
        &format!("{name}: {failure}; the guest goes on without barfit"),
        None,
    );
    Reply::default()
}

struct Hook<'a> {
    root: &'a Path,
    name: &'a str,
}

impl Hook<'_> {
    fn run(&self, operation: &str, input: impl Read) -> Reply {
        // Any call is a chance to notice a new QEMU.
        for shim in shim::refresh(self.root) {
            let text =
                format!("QEMU is newer than {}: libvirt will ask for its capabilities again", shim.display());
            self.log(Priority::Info, operation, &text, None);
        }
        let ours = matches!(operation, "prepare" | "started" | "release" | "restore");
        let mut xml = Vec::new();
        if ours {
            // A daemon that dies half-way leaves a half document, which then does not parse.
            if let Err(error) = input.take(LARGEST_XML + 1).read_to_end(&mut xml) {
                let text = format!("{}: libvirt's domain cannot be read to its end: {error}", self.name);
                self.log(Priority::Error, operation, &text, None);
            }
        }
        fault::inject(self.root, operation);
        match operation {
            "prepare" => self.prepare(&xml),
            "started" => self.started(&xml),
            "restore" => self.restore(&xml),
            "release" => self.release(&xml),
            _ => Reply::default(),
        }
    }

    fn prepare(&self, xml: &[u8]) -> Reply {
        let domain = match Domain::parse(xml) {
            Ok(domain) => domain,
            Err(error) => {
                let text = format!("{}: the domain cannot be read: {error}", self.name);
                self.log(Priority::Warning, "prepare", &text, None);
                return Reply::default();
            }
        };
        let uuid = domain.uuid.clone().unwrap_or_default();
        let plans = Plans::at(self.root);
        if let Err(error) = plans.remove(&uuid) {
            self.log(
                Priority::Error,
                "prepare",
                &format!("{}: a stale plan stays: {error}", self.name),
                Some(&uuid),
            );
        }
        if self.take_restoring(&uuid) {
            return self.prepare_restored(&plans, &uuid);
        }
        let policy = self.policy();
        let nothing = Policy::default();
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
        self.deliver(&plans, &domain, &uuid, &answer, mode)
    }

    /// Leaves the plan, tells what will happen, and in strict mode refuses what would lose a GPU.
    fn deliver(&self, plans: &Plans, domain: &Domain, uuid: &str, answer: &Answer, mode: Mode) -> Reply {
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
            let plan = self.write_plan(plans, uuid, &answer.plan.changes, &summary);
            if let Err(error) = plan {
                delivered = false;
                let text = format!(
                    "{}: the plan cannot be written: {error}; nothing changes at this start",
                    self.name
                );
                self.log(Priority::Error, "prepare", &text, Some(uuid));
            }
        }
        self.remember_changes(uuid, if delivered { &answer.plan.changes } else { &[] });
        let lost = if delivered { total - after.min(total) } else { total - before.min(total) };
        let starts =
            !matches!(if delivered { answer.plan.verdict } else { answer.verdict }, Verdict::WillNotStart);
        let priority = if lost == 0 && starts { Priority::Info } else { Priority::Warning };
        self.log(priority, "prepare", &format!("{}: {summary}", self.name), Some(uuid));
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
            let name = journal::printable(self.name);
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
    fn prepare_restored(&self, plans: &Plans, uuid: &str) -> Reply {
        let changes = fs::read(self.root.join(APPLIED).join(format!("{uuid}.json")));
        let changes: Vec<Change> =
            changes.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let summary = if changes.is_empty() {
            "restored as it was saved".to_owned()
        } else {
            let words: Vec<String> = changes.iter().map(ToString::to_string).collect();
            format!("restored with what it was started with: {}", words.join(" and "))
        };
        self.log(Priority::Info, "prepare", &format!("{}: {summary}", self.name), Some(uuid));
        if !changes.is_empty()
            && let Err(error) = self.write_plan(plans, uuid, &changes, &summary)
        {
            let text = format!("{}: the plan cannot be written: {error}", self.name);
            self.log(Priority::Error, "prepare", &text, Some(uuid));
        }
        Reply::default()
    }

    fn write_plan(&self, plans: &Plans, uuid: &str, changes: &[Change], summary: &str) -> io::Result<()> {
        let plan = PlanFile {
            schema: plan_file::SCHEMA.to_owned(),
            uuid: uuid.to_owned(),
            name: journal::bounded(self.name).into_owned(),
            boot_id: plan_file::boot_id(self.root)?,
            written: plan_file::since_boot(),
            changes: changes.to_vec(),
            summary: journal::bounded(summary).into_owned(),
        };
        plans.write(&plan).map(|_| ())
    }

    fn restore(&self, xml: &[u8]) -> Reply {
        if let Ok(domain) = Domain::parse(xml)
            && let Some(uuid) = domain.uuid.filter(|uuid| plan_file::is_uuid(uuid))
        {
            let folder = self.root.join(RESTORING);
            let time = plan_file::since_boot().to_string();
            let written = fs::create_dir_all(&folder)
                .and_then(|()| write_atomically(&folder.join(&uuid), time.as_bytes()));
            if let Err(error) = written {
                let text = format!("{}: that it is restored cannot be kept: {error}", self.name);
                self.log(Priority::Error, "restore", &text, Some(&uuid));
            }
        }
        Reply::default()
    }

    /// Whether this guest's `restore` has begun within the last minutes; asked once.
    fn take_restoring(&self, uuid: &str) -> bool {
        if !plan_file::is_uuid(uuid) {
            return false;
        }
        let path = self.root.join(RESTORING).join(uuid);
        let begun: Option<u64> = fs::read_to_string(&path).ok().and_then(|text| text.parse().ok());
        let _ = fs::remove_file(&path);
        begun.is_some_and(|at| plan_file::since_boot().abs_diff(at) < plan_file::FRESH.as_secs())
    }

    fn remember_changes(&self, uuid: &str, changes: &[Change]) {
        if !plan_file::is_uuid(uuid) {
            return;
        }
        let folder = self.root.join(APPLIED);
        let path = folder.join(format!("{uuid}.json"));
        if changes.is_empty() {
            let _ = fs::remove_file(path);
        } else if let Ok(bytes) = serde_json::to_vec(changes) {
            let written = fs::create_dir_all(&folder).and_then(|()| write_atomically(&path, &bytes));
            if let Err(error) = written {
                let text = format!("{}: what it is started with cannot be kept: {error}", self.name);
                self.log(Priority::Warning, "prepare", &text, Some(uuid));
            }
        }
    }

    fn started(&self, xml: &[u8]) -> Reply {
        let Ok(domain) = Domain::parse(xml) else { return Reply::default() };
        let uuid = domain.uuid.unwrap_or_default();
        let plan = match Plans::at(self.root).read(&uuid) {
            Ok(Some(plan)) => plan,
            Ok(None) => return Reply::default(),
            Err(error) => {
                self.log(Priority::Warning, "started", &format!("{}: {error}", self.name), Some(&uuid));
                return Reply::default();
            }
        };
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
        self.log(priority, "started", &format!("{}: {text}", self.name), Some(&uuid));
        if let Some(start) = starts::recall(self.root, &uuid) {
            let _ = starts::remember(self.root, &Start { applied, ..start });
        }
        Reply::default()
    }

    fn release(&self, xml: &[u8]) -> Reply {
        if let Ok(domain) = Domain::parse(xml) {
            let uuid = domain.uuid.unwrap_or_default();
            let plans = Plans::at(self.root);
            let _ = plans.remove(&uuid);
            plans.sweep(&uuid);
            if plan_file::is_uuid(&uuid) {
                plan_file::sweep(&self.root.join(APPLIED).join(format!("{uuid}.json")));
                starts::sweep(self.root, &uuid);
                plan_file::sweep(&self.root.join(RESTORING).join(&uuid));
            }
            // A restore that came to nothing says nothing about the next start.
            let _ = self.take_restoring(&uuid);
        }
        Reply::default()
    }

    /// The policy; `None` when a file of it cannot be used.
    fn policy(&self) -> Option<Policy> {
        here::policy(self.root)
            .inspect_err(|why| {
                let text =
                    format!("{}: the policy cannot be used, so barfit only observes: {why}", self.name);
                self.log(Priority::Error, "prepare", &text, None);
            })
            .ok()
    }

    fn facts(&self, domain: &Domain) -> (HostFacts, Source) {
        let given = here::host_file(self.root).unwrap_or_else(|why| {
            let text = format!("{}: the host file is left out: {why}", self.name);
            self.log(Priority::Error, "prepare", &text, None);
            None
        });
        let (host, source, notes) = here::facts(&Host::at(self.root), domain, given);
        for note in notes {
            self.log(Priority::Warning, "prepare", &format!("{}: {note}", self.name), None);
        }
        (host, source)
    }

    fn log(&self, priority: Priority, operation: &str, text: &str, uuid: Option<&str>) {
        let fields = [
            ("BARFIT_OPERATION", operation),
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
