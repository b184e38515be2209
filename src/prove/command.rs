//! The command `prove`: its arguments, and what it writes where it is told to.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Accel, Error, FirmwareFiles, Limits, Result, Rig, Subject, find_qemu, sweep};
use crate::layout::{Change, Firmware, OvmfRules, SeaBiosRules};

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
    /// Firmware to sweep, ERA:PATH, e.g. `202211:/usr/share/OVMF/OVMF_CODE_4M.fd`, `202502+override:…`,
    /// `seabios-1.16.2:…`; repeat for several
    #[arg(long, value_name = "ERA:PATH", required = true)]
    pub firmware: Vec<String>,
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
    for text in &arguments.firmware {
        let (name, path) = text.split_once(':').unwrap_or(("", text));
        let rules = rules(name).ok_or_else(|| Error::Unsupported(format!("`{name}` is no era")))?;
        let rig = Rig::new(qemu.clone(), FirmwareFiles::beside(Path::new(path))?, accel);
        subjects.push(Subject { name: name.to_owned(), rules, rig });
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
                again.map_or("", String::as_str)
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

fn rules(name: &str) -> Option<Firmware> {
    if let Some(version) = name.strip_prefix("seabios-") {
        return Some(Firmware::SeaBios(seabios(version)));
    }
    let (era, changes) = name.split_once('+').unwrap_or((name, ""));
    let mut rules = OvmfRules::era(era)?;
    match changes {
        "" => {}
        "override" => rules.apply(Change::FwCfgOverride),
        _ => return None,
    }
    Some(Firmware::Ovmf(rules))
}

fn seabios(version: &str) -> SeaBiosRules {
    let since = |numbers: &[u32]| {
        let own: Vec<u32> = version.split('.').map_while(|t| t.parse().ok()).collect();
        own.as_slice() >= numbers
    };
    SeaBiosRules {
        version: version.to_owned(),
        reads_phys_bits: since(&[1, 16, 3]),
        clamp_44: since(&[1, 17]),
        pads_always: since(&[1, 17]),
    }
}
