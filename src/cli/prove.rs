//! `prove`: a domain before and after the change, or random guests, on the real firmware.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::arguments::{Format, Judging, Prove};
use super::input;
use super::judge::{Judge, Judged};
use super::output::{Failure, Output};
use crate::domain::{Domain, FirmwareRequest};
use crate::guest::firmware_rules;
use crate::host::{Depth, Host};
use crate::layout::{Firmware, Guest};
use crate::prove::{
    Accel, Error, FirmwareFiles, Limits, Linux, Rig, Subject, find_qemu, proof_json, proof_text, sweep,
};

pub(super) fn prove(arguments: &Prove) -> Result<Output, Failure> {
    let limits = Limits { timeout: Duration::from_secs(arguments.timeout), stop: stop_on_signals()? };
    let qemu = arguments.qemu.clone().map_or_else(find_qemu, Ok).map_err(Failure::new)?;
    match (arguments.sweep, &arguments.domain) {
        (Some(count), _) => sweep_guests(arguments, count, &qemu, &limits),
        (None, Some(_)) => prove_domain(arguments, &qemu, &limits),
        (None, None) => Err(Failure::new("a domain is missing")),
    }
}

/// A flag that SIGINT, SIGTERM and SIGHUP set, so that QEMU and its folder go before barfit does.
fn stop_on_signals() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::<AtomicBool>::default();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, stop.clone()).map_err(Failure::new)?;
    }
    Ok(stop)
}

fn accel(arguments: &Prove) -> Accel {
    if arguments.kvm { Accel::Kvm } else { Accel::Tcg }
}

fn prove_domain(arguments: &Prove, qemu: &Path, limits: &Limits) -> Result<Output, Failure> {
    if arguments.firmware.len() > 1 {
        return Err(Failure::new("--firmware can be given once for a domain"));
    }
    let judged = judged(arguments)?;
    let answer = &judged.answer;
    if !answer.assembled.unknown.is_empty() {
        let why = answer.assembled.unknown.join("; ");
        return Err(Failure::new(format!("{}: cannot be proved: {why}", judged.input.label)));
    }
    let Some(present) = &answer.assembled.guest else {
        return Err(Failure::new(format!(
            "{}: cannot be proved: its layout is not known",
            judged.input.label
        )));
    };
    let choice = arguments.firmware.first().map(String::as_str);
    let (path, rules) = firmware_file(choice, &judged.domain, present)?;
    let mut notes = Vec::new();
    if rules != present.firmware {
        notes.push(format!(
            "booted {}, {}; what to change was decided for {}",
            path.display(),
            rules.name(),
            present.firmware.name()
        ));
    }
    let mut rig =
        Rig::new(qemu.to_owned(), FirmwareFiles::beside(&path).map_err(Failure::new)?, accel(arguments));
    if let (Some(kernel), Some(initrd)) = (&arguments.kernel, &arguments.initrd) {
        rig.linux = Some(Linux { kernel: kernel.clone(), initrd: initrd.clone() });
    }

    let planned = answer.plan.guest.as_ref().filter(|_| !answer.plan.changes.is_empty());
    let mut proofs = Vec::new();
    for (title, guest, wanted) in
        [("Before", Some(present), !arguments.after), ("After", planned, !arguments.before)]
    {
        if let Some(guest) = guest.filter(|_| wanted) {
            let guest = Guest { firmware: rules.clone(), ..guest.clone() };
            let _progress = Progress::start(title);
            let proof = crate::prove::prove(&rig, &guest, limits).map_err(Failure::new)?;
            proofs.push((title, proof));
        }
    }
    if proofs.is_empty() {
        return Err(Failure::new(format!("{}: there is nothing to change", judged.input.label)));
    }
    let (name, devices) = (&judged.domain.name, &answer.assembled.devices);
    let text = match arguments.format {
        Format::Human => proof_text(name, &format!("{}, {}", rules.name(), path.display()), devices, &proofs),
        Format::Json => proof_json(name, &rules.name(), &path, devices, &proofs)?,
    };
    let no = !proofs.iter().all(|(_, proof)| proof.is_as_predicted());
    Ok(Output { no, notes, ..Output::text(text) })
}

fn judged(arguments: &Prove) -> Result<Judged, Failure> {
    // An era or a file of this machine decides what is booted; the plan is made for it, too.
    let judging = Judging {
        connect: arguments.connect.clone(),
        host: arguments.host.clone(),
        firmware: arguments.firmware.first().cloned(),
        policy: arguments.policy.clone(),
        assume_gpu: arguments.assume_gpu,
    };
    let named: Vec<_> = arguments.domain.iter().cloned().collect();
    let mut inputs = input::domains(&named, judging.connect.as_deref())?;
    let input = inputs.pop().ok_or_else(|| Failure::new("a domain is missing"))?;
    Judge::new(&judging)?.judge(input)
}

/// The file to boot and its own rules: the one named, else the one the domain names if this machine has it, else
/// one of this machine that plays by the same rules.
fn firmware_file(
    choice: Option<&str>,
    domain: &Domain,
    guest: &Guest,
) -> Result<(PathBuf, Firmware), Failure> {
    let host = Host::here();
    let named = match (choice, &domain.firmware) {
        (Some(text), _) => absolute(text).ok().filter(|path| path.is_file()),
        (
            None,
            FirmwareRequest::Pflash(path)
            | FirmwareRequest::Rom(path)
            | FirmwareRequest::AutoEfi { loader: Some(path) },
        ) => Some(path.clone()).filter(|path| path.is_file()),
        _ => None,
    };
    let rules_of =
        |path: &Path| host.firmware_file(path, Depth::Image).and_then(|file| firmware_rules(&file));
    if let Some(path) = named {
        let rules = rules_of(&path).ok_or_else(|| {
            Failure::new(format!("{} is no OVMF or SeaBIOS that barfit knows", path.display()))
        })?;
        return Ok((path, rules));
    }
    let (files, _) = host.firmware_files(Depth::Image);
    let same = files.iter().find(|file| {
        firmware_rules(file).as_ref() == Some(&guest.firmware) && FirmwareFiles::beside(&file.path).is_ok()
    });
    same.map(|file| (file.path.clone(), guest.firmware.clone())).ok_or_else(|| {
        Failure::new(format!(
            "this machine has no firmware that plays by the rules of {}; name a file with --firmware",
            guest.firmware.name()
        ))
    })
}

fn sweep_guests(arguments: &Prove, count: u64, qemu: &Path, limits: &Limits) -> Result<Output, Failure> {
    let subjects = subjects(arguments, qemu)?;
    let jobs = arguments.jobs.or_else(|| std::thread::available_parallelism().ok().map(usize::from));
    let mut broken = false;
    let mut done = 0u64;
    let terminal = io::stderr().is_terminal();
    let summary =
        sweep(&subjects, arguments.seed, arguments.from, count, jobs.unwrap_or(1), limits, |case| {
            // A reader that has gone away stops the sweep like a signal.
            let line = serde_json::to_string(case).unwrap_or_default();
            if writeln!(io::stdout(), "{line}").is_err() {
                broken = true;
                limits.stop.store(true, Ordering::Relaxed);
            }
            done += 1;
            let mut stderr = io::stderr().lock();
            if case.agrees != Some(true) {
                let _ = writeln!(stderr, "{case}");
            }
            if terminal {
                let _ = write!(stderr, "\r{done} of {count} guests\r");
            }
        });
    match summary {
        Err(Error::Interrupted) if broken => Ok(Output::default()),
        Err(error) => Err(Failure::new(error)),
        Ok(summary) => {
            let _ = write!(io::stderr(), "{summary}");
            Ok(Output { no: !summary.all_agree(), ..Output::default() })
        }
    }
}

/// The firmware to sweep: the files named, or one of each kind that this machine has.
fn subjects(arguments: &Prove, qemu: &Path) -> Result<Vec<Subject>, Failure> {
    let host = Host::here();
    let files = if arguments.firmware.is_empty() {
        host.firmware_files(Depth::Image).0
    } else {
        let named = arguments.firmware.iter().map(|text| {
            let path = absolute(text).map_err(Failure::new)?;
            host.firmware_file(&path, Depth::Image)
                .ok_or_else(|| Failure::new(format!("--firmware {text}: no file with OVMF or SeaBIOS in it")))
        });
        input::gather(named)?
    };
    let mut subjects: Vec<Subject> = Vec::new();
    for file in files {
        let Some(rules) = firmware_rules(&file) else { continue };
        if arguments.firmware.is_empty() && subjects.iter().any(|subject| subject.rules == rules) {
            continue;
        }
        match FirmwareFiles::beside(&file.path) {
            Ok(files) => {
                let rig = Rig::new(qemu.to_owned(), files, accel(arguments));
                subjects.push(Subject { name: rules.name(), rules, rig });
            }
            Err(_) if arguments.firmware.is_empty() => {}
            Err(error) => return Err(Failure::new(error)),
        }
    }
    if subjects.is_empty() {
        return Err(Failure::new(
            "there is no firmware here: install ovmf and seabios, or name files with --firmware",
        ));
    }
    Ok(subjects)
}

/// Says on a terminal what is being waited for.
struct Progress {
    done: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Progress {
    fn start(title: &'static str) -> Progress {
        let done = Arc::<AtomicBool>::default();
        let ended = done.clone();
        let thread = io::stderr().is_terminal().then(|| {
            std::thread::spawn(move || {
                let started = Instant::now();
                while !ended.load(Ordering::Relaxed) {
                    let seconds = started.elapsed().as_secs();
                    let _ = write!(io::stderr(), "\r{title}: the firmware is at work, {seconds} s");
                    std::thread::park_timeout(Duration::from_millis(500));
                }
                // Back to the start of the line, and clear it.
                let _ = write!(io::stderr(), "\r\x1b[K");
            })
        });
        Progress { done, thread }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
