//! `doctor`: whether barfit, libvirt and this machine are as they have to be for a guest's GPUs, a check at a time.
//!
//! Each check has a stable code, says what it found, and what to do where that is not well. Nothing is changed. It may
//! start `virsh`; what libvirt does not answer is then unknown, not wrong.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use super::dmesg::{self, Cause};
use super::install::places::{HOOK, HOOK_IN_FOLDER};
use super::{daemon, hook, shim, starts};
use crate::catalogue;
use crate::domain::Domain;
use crate::host::{FirmwareKind, HostFacts, Program, Version};
use crate::plan::{Answer, Verdict};
use crate::report::headline;
use crate::rewrite;
use crate::text::printable;

/// The value of `schema`.
pub const SCHEMA: &str = "barfit/doctor/1";

/// How a check ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, or might not; worth knowing.
    Warn,
    /// A guest loses something by it.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// How it ended.
    pub state: State,
    /// Stable code.
    pub code: &'static str,
    /// What was found.
    pub text: String,
    /// What to do; `None` where there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

fn ok(code: &'static str, text: impl Into<String>) -> Check {
    Check { state: State::Ok, code, text: text.into(), advice: None }
}

fn warn(code: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { state: State::Warn, code, text: text.into(), advice: Some(advice.into()) }
}

fn fail(code: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { state: State::Fail, ..warn(code, text, advice) }
}

/// The worst of all checks.
pub fn worst(checks: &[Check]) -> State {
    checks.iter().map(|check| check.state).max().unwrap_or(State::Ok)
}

/// For people: a line a check, and what to do below it.
pub fn text(checks: &[Check]) -> String {
    let line = |check: &Check| {
        let state = match check.state {
            State::Ok => "ok  ",
            State::Warn => "warn",
            State::Fail => "FAIL",
        };
        let advice = check.advice.as_ref().map(|advice| format!("      {advice}\n")).unwrap_or_default();
        format!("{state}  {}: {}\n{advice}", check.code, printable(&check.text))
    };
    checks.iter().map(line).collect()
}

/// For programs: `barfit/doctor/1`.
///
/// # Errors
/// JSON that cannot be written.
pub fn json(checks: &[Check]) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct Doctor<'a> {
        schema: &'static str,
        state: State,
        checks: &'a [Check],
    }
    Ok(serde_json::to_string_pretty(&Doctor { schema: SCHEMA, state: worst(checks), checks })? + "\n")
}

/// Whether barfit is installed, and in the running daemon's way.
pub fn installation(root: &Path) -> Vec<Check> {
    let mut checks = vec![hook_installed(root)];
    let shims: Vec<&str> =
        shim::NAMES.into_iter().filter(|name| root.join(shim::FOLDER).join(name).exists()).collect();
    let pids = daemon::running();
    if pids.is_empty() {
        checks.push(warn(
            "DAEMON_RUNS",
            "neither libvirtd nor virtqemud runs",
            "its hook and its PATH can be checked when it does: it may start when it is first asked (`virsh uri`)",
        ));
    }
    for pid in pids {
        checks.push(hook_seen(root, pid.as_raw_nonzero().get()));
        if !shims.is_empty() {
            checks.push(path(root, pid.as_raw_nonzero().get()));
        }
    }
    if shims.is_empty() {
        checks.push(warn(
            "SHIM_INSTALLED",
            "the emulator shim is not installed: the hook can report and refuse, not correct",
            "barfit install",
        ));
        return checks;
    }
    for name in shims {
        checks.push(match shim::real_emulator(root, name.as_ref()) {
            Ok(real) => ok("SHIM_INSTALLED", format!("{name} becomes {}", real.display())),
            Err(why) => fail("SHIM_INSTALLED", why, "install QEMU, or `barfit uninstall`"),
        });
    }
    checks.push(match daemon::default_emulator() {
        Ok(path) if shim::is_shim(root, Path::new(&path)) => {
            ok("SHIM_IS_DEFAULT", format!("domains that name no emulator get {path}"))
        }
        Ok(path) => fail(
            "SHIM_IS_DEFAULT",
            format!("domains that name no emulator get {path}, not the shim"),
            "restart libvirtd (virtqemud) so that it takes the PATH of its drop-in; running guests go on",
        ),
        Err(why) => warn("SHIM_IS_DEFAULT", format!("libvirt does not say: {why}"), "see DAEMON_RUNS"),
    });
    checks
}

fn hook_installed(root: &Path) -> Check {
    let is_ours =
        |path: &Path| fs::read(path).is_ok_and(|text| String::from_utf8_lossy(&text).contains("barfit"));
    let hook = [HOOK_IN_FOLDER, HOOK].map(|path| root.join(path)).into_iter().find(|path| is_ours(path));
    match hook {
        Some(path) if fs::metadata(&path).is_ok_and(|facts| facts.mode() & 0o111 != 0) => {
            ok("HOOK_INSTALLED", path.display().to_string())
        }
        Some(path) => fail(
            "HOOK_INSTALLED",
            format!("{} is not executable, so libvirt passes it over", path.display()),
            "barfit install",
        ),
        None => fail("HOOK_INSTALLED", "libvirt has no hook of barfit's", "barfit install"),
    }
}

/// libvirt looks for hooks when it starts and on SIGHUP; whether it has seen one only its calls prove.
fn hook_seen(root: &Path, pid: i32) -> Check {
    let code = "HOOK_SEEN";
    if !starts::all(root).is_empty() {
        return ok(code, "the daemon has called the hook since this host was booted");
    }
    let time = |path: &Path| fs::metadata(path).ok().map(|facts| facts.ctime());
    let hook = [HOOK_IN_FOLDER, HOOK].iter().filter_map(|path| time(&root.join(path))).min();
    let began = time(&root.join("proc").join(pid.to_string()));
    match (hook, began) {
        (Some(hook), Some(began)) if hook <= began => ok(code, "the hook was there when the daemon started"),
        _ => warn(
            code,
            "the hook is younger than the daemon, and no guest with passed-through devices has started since",
            format!("make sure by kill -HUP {pid} (systemctl reload)"),
        ),
    }
}

fn path(root: &Path, pid: i32) -> Check {
    let code = "SHIM_IN_PATH";
    let own = Path::new("/").join(shim::FOLDER);
    let Ok(environment) = fs::read(root.join(format!("proc/{pid}/environ"))) else {
        return warn(code, format!("the environment of process {pid} cannot be read"), "run this as root");
    };
    let path = environment.split(|byte| *byte == 0).find_map(|word| word.strip_prefix(b"PATH="));
    let path = OsString::from_vec(path.unwrap_or_default().to_vec());
    match std::env::split_paths(&path).position(|folder| folder == own) {
        Some(0) => ok(code, format!("{} is first in the daemon's PATH", own.display())),
        Some(_) => fail(
            code,
            format!("{} is in the daemon's PATH, but not first: {}", own.display(), path.to_string_lossy()),
            "something sets PATH again; look at `systemctl cat libvirtd` and its EnvironmentFile",
        ),
        None => fail(
            code,
            format!("the daemon runs with PATH={}", path.to_string_lossy()),
            "restart it so that it takes the PATH of its drop-in; running guests go on",
        ),
    }
}

/// What the machine and its programs mean for guests with GPUs.
pub fn machine(facts: &HostFacts) -> Vec<Check> {
    let mut checks = Vec::new();
    let cpu = facts.cpu.clone().unwrap_or_default();
    checks.push(match cpu.phys_bits {
        Some(bits) => {
            ok("HOST_BITS", format!("the CPU has {bits} physical address bits, so no guest can have more"))
        }
        None => warn(
            "HOST_BITS",
            "the CPU's address width is not known",
            "/proc/cpuinfo has no line `address sizes`",
        ),
    });
    if cpu.pdpe1gb == Some(false) {
        checks.push(warn(
            "GIB_PAGES",
            "the CPU has no 1 GiB pages: OVMF uses 40 bits at most, whatever a guest has",
            "guests with large BARs need X-PciMmio64Mb or SeaBIOS; `barfit check` says what fits",
        ));
    }
    checks.push(match (facts.iommu_bits, cpu.phys_bits) {
        (Some(iommu), Some(bits)) if iommu < bits => warn(
            "IOMMU_BITS",
            format!("the IOMMU translates {iommu} bits, fewer than the CPU's {bits}"),
            format!("guests are kept to {iommu} bits; nothing to do"),
        ),
        (Some(iommu), _) => ok("IOMMU_BITS", format!("the IOMMU translates {iommu} bits")),
        (None, _) => warn(
            "IOMMU_BITS",
            "no IOMMU was found, or its registers cannot be read",
            "passthrough needs one: switch it on in the host's firmware setup, and with intel_iommu=on; run this as root",
        ),
    });
    checks.push(version(
        "LIBVIRT_VERSION",
        "libvirt",
        facts.libvirt.as_ref(),
        &[
            (Version(8, 7, 0), "has no <maxphysaddr>: `barfit apply` writes `-global` for QEMU instead"),
            (
                Version(9, 3, 0),
                "has no limit= of <maxphysaddr>: a host-passthrough guest gets the host's width, no other",
            ),
        ],
    ));
    checks.push(version("QEMU_VERSION", "QEMU", facts.qemu.as_ref(), &[
        (Version(7, 1, 0), "does not check that the guest fits below 2^phys-bits, and puts no AMD guest's RAM above 1 TiB"),
        (Version(9, 2, 0), "maps large BARs unaligned: a guest may take minutes to find them (QEMU 9.2 and a kernel with huge pfnmap cure it)"),
        (Version(10, 1, 0), "may stall for long on the largest BARs (B200 and the like), which QEMU 10.1 does not"),
    ]));
    for file in &facts.firmware {
        let what = match file.kind {
            FirmwareKind::Ovmf => format!("OVMF of era {}", file.era.as_deref().unwrap_or("(unknown)")),
            FirmwareKind::Seabios => format!("SeaBIOS {}", file.version.as_deref().unwrap_or("(unknown)")),
        };
        checks.push(ok("FIRMWARE", format!("{}: {what}", file.path.display())));
    }
    for gpu in facts.pci.iter().filter(|f| catalogue::is_gpu(&f.class, &f.vendor, &f.device)) {
        let name = catalogue::by_id(&gpu.vendor, &gpu.device)
            .map_or_else(|| format!("{}:{}", gpu.vendor, gpu.device), |entry| entry.name.to_owned());
        let bars = gpu.bars.iter().flatten().map(|bar| format!("BAR {} {}", bar.index, bar.size));
        let bars: Vec<String> = bars.collect();
        checks.push(match bars.as_slice() {
            [] => warn(
                "GPU_BARS",
                format!("{} {name}: its BARs cannot be read", gpu.address),
                "the catalogue's are taken",
            ),
            bars => ok("GPU_BARS", format!("{} {name}: {}", gpu.address, bars.join(", "))),
        });
    }
    checks
}

/// A program's version, and the first of the thresholds (ascending) that it does not reach.
fn version(code: &'static str, name: &str, program: Option<&Program>, meanings: &[(Version, &str)]) -> Check {
    let Some(version) = program.and_then(Program::number) else {
        return warn(code, format!("{name} was not found"), format!("install {name}"));
    };
    match meanings.iter().find(|(since, _)| version < *since) {
        Some((_, meaning)) => ok(code, format!("{name} {version} {meaning}")),
        None => ok(code, format!("{name} {version}")),
    }
}

/// One domain: what it has and needs, and what its running QEMU has got.
pub fn guest(root: &Path, domain: &Domain, answer: &Answer) -> Vec<Check> {
    let mut checks = Vec::new();
    let text = headline(domain, answer);
    checks.push(match answer.verdict {
        Verdict::Fits | Verdict::NoPassthrough => ok("DOMAIN_FITS", text),
        Verdict::Unknown => warn("DOMAIN_FITS", text, "`barfit check` says what is missing"),
        Verdict::DoesNotFit | Verdict::WillNotStart => fail(
            "DOMAIN_FITS",
            text,
            "`barfit check` says why; with hook and shim, or after `barfit apply`, it starts corrected",
        ),
    });
    if let Some(emulator) = domain.emulator.as_deref()
        && !shim::is_shim(root, emulator)
        && !answer.plan.changes.is_empty()
    {
        checks.push(warn(
            "DOMAIN_EMULATOR",
            format!("it names the emulator {}, so the shim cannot correct its starts", emulator.display()),
            "barfit apply",
        ));
    }
    if let Some(argv) = hook::running_argv(root, &domain.name) {
        let missing: Vec<String> = answer
            .plan
            .changes
            .iter()
            .filter(|change| rewrite::argv::rewrite(argv.clone(), std::slice::from_ref(*change)) != argv)
            .map(ToString::to_string)
            .collect();
        let cpu = argv
            .windows(2)
            .find(|pair| pair[0] == "-cpu")
            .map_or_else(|| "no -cpu".to_owned(), |pair| format!("-cpu {}", pair[1].to_string_lossy()));
        checks.push(if missing.is_empty() {
            ok("RUNNING_QEMU", format!("it runs with everything it needs ({cpu})"))
        } else {
            fail(
                "RUNNING_QEMU",
                format!("it runs with {cpu}, without {}", missing.join(" and ")),
                "it takes a shutdown and a start; a reboot in the guest is not enough",
            )
        });
    }
    checks
}

/// What a guest's kernel log says, its devices named where the domain is known.
pub fn log(text: &str, answer: Option<&Answer>) -> Vec<Check> {
    let symptoms = dmesg::symptoms(text);
    let devices = answer.map_or(&[][..], |answer| &answer.assembled.devices);
    let mut checks = vec![match dmesg::is_address_space(&symptoms) {
        Some(true) => fail(
            "GUEST_LOG",
            "this is an address-space problem: 64-bit BARs have no usable address in the guest",
            "`barfit check` says how many phys-bits it takes",
        ),
        Some(false) => warn(
            "GUEST_LOG",
            "this is not an address-space problem: more phys-bits will not help",
            "see the lines below",
        ),
        None if symptoms.is_empty() => ok("GUEST_LOG", "the log says nothing of devices without addresses"),
        None => warn(
            "GUEST_LOG",
            "a driver gave up, and the log does not say that an address is missing",
            "most likely not an address-space problem; if the log is cut off at its beginning, take one from the start of the guest",
        ),
    }];
    checks.extend(symptoms.into_iter().map(|symptom| {
        let device = devices.iter().find(|device| device.guest.is_some() && device.guest == symptom.device);
        // Bus numbers in a definition are libvirt's; guests mostly count alike.
        let name = device.map(|device| format!(" (most likely {})", device.name)).unwrap_or_default();
        let text = format!("line {}{name}: {}", symptom.line, printable(&symptom.text));
        let state = if symptom.cause == Cause::AddressSpace { State::Fail } else { State::Warn };
        Check { state, code: symptom.code, text, advice: Some(symptom.meaning.to_owned()) }
    }));
    checks
}
