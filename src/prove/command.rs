//! The command `prove`: its arguments, and what it writes where it is told to.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Accel, Error, FirmwareFiles, Limits, Result, Rig, Subject, find_qemu, sweep};
use crate::guest;
use crate::host::{Depth, Host};
use crate::layout::Firmware;

/// Arguments of `prove`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Prove this many random guests
    #[arg(long, value_name = "N")]
    pub sweep: u64,
    /// Seed of the random guests
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Number of the first random guest under the seed
    #[arg(long, default_value_t = 0)]
    pub from: u64,
    /// Firmware image; repeat for several
    #[arg(long, value_name = "PATH", required = true)]
    pub firmware: Vec<PathBuf>,
    /// QEMUs side by side
    #[arg(long, default_value_t = 1)]
    pub jobs: usize,
    /// Seconds after which one boot is given up
    #[arg(long, default_value_t = 600)]
    pub timeout: u64,
    /// The QEMU program instead of the one in PATH
    #[arg(long)]
    pub qemu: Option<PathBuf>,
    /// Use the host's CPU
    #[arg(long)]
    pub kvm: bool,
}

/// Runs a sweep: one JSON line a case on `out`, the table and every disagreement on `log`. `Ok(true)` when all agree.
///
/// # Errors
/// As [`sweep`].
pub fn run(
    arguments: &Arguments,
    out: &mut (impl Write + Send),
    log: &mut (impl Write + Send),
) -> Result<bool> {
    let limits = Limits { timeout: Duration::from_secs(arguments.timeout), ..Limits::default() };
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, limits.stop.clone()).map_err(Error::io("signal handler"))?;
    }
    let qemu = arguments.qemu.clone().map_or_else(find_qemu, Ok)?;
    let accel = if arguments.kvm { Accel::Kvm } else { Accel::Tcg };
    let mut subjects = Vec::new();
    for path in &arguments.firmware {
        subjects.push(subject(path, qemu.clone(), accel)?);
    }
    let Arguments { seed, from, sweep: count, jobs, .. } = *arguments;
    let mut broken = Ok(());
    let summary = sweep(&subjects, seed, from, count, jobs, &limits, |case| {
        let line = serde_json::to_string(case).unwrap_or_default();
        broken = std::mem::replace(&mut broken, Ok(())).and_then(|()| writeln!(out, "{line}"));
        if case.agrees != Some(true) {
            // One subject is enough to do it again, if it is named alone.
            let again = arguments.firmware.get((case.number % subjects.len() as u64) as usize);
            let again = format!(
                "barfit prove --seed {} --from {} --sweep 1 --firmware {}",
                case.seed,
                case.number,
                again.map_or(Path::new(""), PathBuf::as_path).display()
            );
            let text = case.differences.join("; ");
            let _ = writeln!(
                log,
                "{} {}: {} [{}] {text}\n    {again}",
                case.firmware, case.rule, case.seen, case.number
            );
        }
    })?;
    broken.map_err(Error::io("output"))?;
    write!(log, "{summary}").map_err(Error::io("output"))?;
    Ok(summary.all_agree())
}

/// The rules that a firmware file plays by, found from the file itself, and what to call it in tables.
fn subject(path: &Path, qemu: PathBuf, accel: Accel) -> Result<Subject> {
    let files = FirmwareFiles::beside(path)?;
    let rules = Host::here().firmware_file(path, Depth::Image).and_then(|file| guest::firmware_rules(&file));
    let Some(rules) = rules else {
        return Err(Error::Unsupported(format!(
            "{} is no OVMF or SeaBIOS that is known here",
            path.display()
        )));
    };
    let name = match &rules {
        Firmware::Ovmf(rules) if rules.fw_cfg_override => format!("ovmf {} override", rules.era),
        Firmware::Ovmf(rules) => format!("ovmf {}", rules.era),
        Firmware::SeaBios(rules) => format!("seabios {}", rules.version),
    };
    Ok(Subject { name, rules, rig: Rig::new(qemu, files, accel) })
}
