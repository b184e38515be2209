//! Boots a guest of stand-ins and reports what the firmware did with its BARs.
//!
//! The firmware is done when it fetches the ACPI tables ([`super::trace`]); it hangs when that is proved
//! ([`super::hang`]); QEMU refuses
//! when it says so and ends before the firmware has begun. Before the answer counts, the
//! devices that QEMU made are compared with the guest's, BAR by BAR.
//!
//! What the firmware does with its devices afterwards is not observed: OVMF's own driver of a device beyond 2^phys-bits
//! faults, for one. A Linux guest (`Rig::linux`) tells.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::hang::{Look, SILENCE_FLOOR, Watch};
use super::qemu::{self, Line, Qemu};
use super::rig::{Rig, bare};
use super::stand_in::{StandIn, stand_in};
use super::trace::{Register, Step, Trace, maps};
use super::{Error, Result};
use crate::layout::{BridgeKind, Function, FunctionId, Guest, PlacedBar, Role};
use crate::units::{Addr, Bar, BarKind, Bytes};

/// Bounds of one boot.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Wall-clock time after which nothing is known.
    pub timeout: Duration,
    /// Set (by a signal, say) to stop early.
    pub stop: Arc<AtomicBool>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { timeout: Duration::from_secs(600), stop: Arc::default() }
    }
}

/// What was seen of a boot.
#[derive(Clone, Debug)]
pub struct Observed {
    /// How it went.
    pub seen: Seen,
    /// Wall-clock time it took.
    pub time: Duration,
    /// Wall-clock time at which the last BAR was written.
    pub settled: Duration,
    /// CPU time the guest took.
    pub cpu: Duration,
    /// Where each BAR's register is found in the guest; empty unless the firmware finished.
    pub registers: BTreeMap<(FunctionId, u8), Register>,
    /// What the Linux guest wrote on its console, if one was booted.
    pub console: Option<String>,
}

/// How a boot went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// QEMU refused to start because the guest's addresses do not fit in phys-bits; its message.
    Refused(String),
    /// The firmware finished with the BARs placed like this: all of the guest's but expansion ROMs.
    Placed(Vec<PlacedBar>),
    /// The firmware never finishes; how that is known.
    Hung(String),
    /// Still at work when time was up: nothing is known.
    TimedOut,
}

/// Boots `stand` in `rig`.
///
/// # Errors
/// Anything that keeps the question from being asked: a missing program, a guest that cannot be built, a
/// signal. What the firmware does is never an error.
pub fn boot(rig: &Rig, stand: &StandIn, limits: &Limits) -> Result<Observed> {
    Boot::start(rig, stand)?.run(rig, stand, limits)
}

struct Boot {
    qemu: Qemu,
    trace: Trace,
    watch: Watch,
    started: Instant,
    settled: Duration,
    cpu: Duration,
    began: bool,
    message: String,
    registers: BTreeMap<(FunctionId, u8), Register>,
}

/// How often the virtual CPU is looked at while the firmware is silent.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The kernel's last word before it hands over: PCI is settled by then.
const INIT_STARTS: &str = "Run /init as init process";
/// What an initramfs may print when it has no more to say.
const ALL_SAID: &str = "barfit: end";
/// A guest that says nothing for so long after its start has said all.
const QUIET: Duration = Duration::from_secs(20);

impl Boot {
    fn start(rig: &Rig, stand: &StandIn) -> Result<Boot> {
        let folder = qemu::folder()?;
        let arguments = rig.arguments(stand, folder.path())?;
        Ok(Boot {
            qemu: Qemu::start(&rig.qemu, &arguments, folder)?,
            trace: Trace::default(),
            watch: Watch::default(),
            started: Instant::now(),
            settled: Duration::ZERO,
            cpu: Duration::ZERO,
            began: false,
            message: String::new(),
            registers: BTreeMap::new(),
        })
    }

    fn run(mut self, rig: &Rig, stand: &StandIn, limits: &Limits) -> Result<Observed> {
        let seen = loop {
            if let Some(seen) = self.step(rig, stand, limits)? {
                break seen;
            }
        };
        let finished = matches!(seen, Seen::Placed(_));
        let console = if finished && rig.linux.is_some() { self.linux(limits)? } else { None };
        let (time, settled) = (self.started.elapsed(), self.settled);
        Ok(Observed { seen, time, settled, cpu: self.cpu, registers: self.registers, console })
    }

    /// Lets the Linux guest run until it powers off, says that it has said all, or falls silent after its start.
    fn linux(&mut self, limits: &Limits) -> Result<Option<String>> {
        let mut quiet_since = Instant::now();
        let mut console = String::new();
        loop {
            if limits.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let closed = matches!(self.qemu.line(LOOK_EVERY), Line::Closed);
            let now = self.qemu.console()?;
            if now.len() != console.len() {
                quiet_since = Instant::now();
                console = now;
            }
            let started = console.contains(INIT_STARTS);
            let all_said = console.contains(ALL_SAID) || started && quiet_since.elapsed() > QUIET;
            if closed || all_said || self.started.elapsed() > limits.timeout {
                return Ok(Some(console));
            }
        }
    }

    fn step(&mut self, rig: &Rig, stand: &StandIn, limits: &Limits) -> Result<Option<Seen>> {
        if limits.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        if self.started.elapsed() > limits.timeout {
            return Ok(Some(Seen::TimedOut));
        }
        match self.qemu.line(LOOK_EVERY) {
            Line::Text(line) => match self.trace.line(&line) {
                Step::Done => self.placed(stand).map(Some),
                Step::Progress => {
                    self.began = true;
                    if maps(&line) {
                        self.settled = self.started.elapsed();
                    }
                    self.cpu = self.qemu.cpu_time().ok().flatten().unwrap_or(self.cpu);
                    self.watch.progress(self.cpu);
                    Ok(None)
                }
                Step::Other => {
                    self.remember(&line);
                    Ok(None)
                }
            },
            Line::Closed => self.ended().map(Some),
            Line::Nothing => self.look(rig, stand, limits),
        }
    }

    /// Keeps QEMU's own last words: the line that says why it will not start.
    fn remember(&mut self, line: &str) {
        let own = line.split_once("qemu-system-x86_64: ").or_else(|| line.split_once("qemu-kvm: "));
        let grave = |text: &&str| !text.starts_with("warning: ") && !text.starts_with("info: ");
        if let Some(text) = own.map(|(_, text)| text).filter(grave) {
            self.message = text.to_owned();
        }
    }

    fn ended(&mut self) -> Result<Seen> {
        let well = self.qemu.ended_well()?;
        if self.began || well {
            return Ok(Seen::Hung("the guest resets itself".to_owned()));
        }
        let message = std::mem::take(&mut self.message);
        if message.contains("phys-bits too low") {
            return Ok(Seen::Refused(message));
        }
        Err(Error::Unsupported(format!("QEMU does not start: {message}")))
    }

    fn look(&mut self, rig: &Rig, stand: &StandIn, limits: &Limits) -> Result<Option<Seen>> {
        // A QEMU that is about to refuse may drop the connection at any moment: its end is read from the pipe.
        let text = match self.qemu.cpu_time() {
            Ok(Some(cpu)) => {
                self.cpu = cpu;
                match self.qemu.monitor()? {
                    Some(monitor) => monitor.human("info registers").unwrap_or_default(),
                    None => return Ok(None),
                }
            }
            Ok(None) | Err(_) => return Ok(None),
        };
        if let Some(proof) = Look::new(self.cpu, &text).and_then(|look| self.watch.still(look)) {
            return Ok(Some(Seen::Hung(proof)));
        }
        if self.watch.silence(self.cpu) > SILENCE_FLOOR {
            let longest = self.baseline(rig, &stand.guest, limits)?;
            return Ok(self.watch.silent(self.cpu, longest).map(Seen::Hung));
        }
        Ok(None)
    }

    /// The longest silence of a bare guest with the same firmware and CPU, in CPU time.
    fn baseline(&mut self, rig: &Rig, guest: &Guest, limits: &Limits) -> Result<Duration> {
        let bare = bare(guest);
        let key = format!("{:?} {:?} {:?} {:?}", bare.machine.chipset, bare.cpu, bare.ram, bare.mmio64_mb);
        let known = |rig: &Rig| rig.baselines.lock().ok().and_then(|map| map.get(&key).copied());
        if let Some(longest) = known(rig) {
            return Ok(longest);
        }
        if let Some(monitor) = self.qemu.monitor()? {
            monitor.execute("stop", json!({}))?;
        }
        let stand = stand_in(&bare)?;
        let mut bare = Boot::start(rig, &stand)?;
        let longest = loop {
            if limits.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            match bare.qemu.line(LOOK_EVERY) {
                Line::Text(line) => {
                    let step = bare.trace.line(&line);
                    if step != Step::Other {
                        bare.cpu = bare.qemu.cpu_time().ok().flatten().unwrap_or(bare.cpu);
                        bare.watch.progress(bare.cpu);
                    }
                    if step == Step::Done {
                        break bare.watch.longest_silence();
                    }
                }
                Line::Nothing => bare.cpu = bare.qemu.cpu_time().ok().flatten().unwrap_or(bare.cpu),
                // Not even the bare guest gets anywhere: silence proves nothing then.
                Line::Closed => break limits.timeout,
            }
            if bare.started.elapsed() > limits.timeout {
                break limits.timeout;
            }
        };
        if let Ok(mut map) = rig.baselines.lock() {
            map.insert(key, longest);
        }
        if let Some(monitor) = self.qemu.monitor()? {
            monitor.execute("cont", json!({}))?;
        }
        Ok(longest)
    }

    fn placed(&mut self, stand: &StandIn) -> Result<Seen> {
        let mapped = self.trace.mapped().clone();
        self.cpu = self.qemu.cpu_time()?.unwrap_or(self.cpu);
        let Some(monitor) = self.qemu.monitor()? else {
            return Err(Error::Monitor("nobody answers".to_owned()));
        };
        let buses = monitor.execute("query-pci", json!({}))?;
        let mut found = BTreeMap::new();
        mirror(&stand.guest.bus, bus_devices(&buses, 0), &buses, &mut found)?;
        let bits = stand.guest.cpu.phys_bits;
        self.registers = found.iter().map(|(key, (register, _))| (*key, *register)).collect();
        let placed = found.into_iter().map(|((function, _), (register, bar))| {
            let address = mapped.get(&register).copied();
            let end = address.and_then(|a| a.checked_add(bar.size.get()));
            PlacedBar {
                function,
                bar,
                address: address.map(Addr),
                reachable: end.is_some_and(|end| end <= bits.limit()),
                rescued: false,
            }
        });
        Ok(Seen::Placed(placed.collect()))
    }
}

type Found = BTreeMap<(FunctionId, u8), (Register, Bar)>;

/// Devices of a root bus by its number.
fn bus_devices(buses: &Value, number: u64) -> &[Value] {
    let mut all = buses.as_array().into_iter().flatten();
    all.find(|b| b["bus"] == number).and_then(|b| b["devices"].as_array()).map_or(&[], Vec::as_slice)
}

/// Walks the guest's tree and QEMU's side by side and collects where each BAR is found; any difference is an error.
fn mirror(functions: &[Function], devices: &[Value], buses: &Value, found: &mut Found) -> Result<()> {
    let place = |d: &Value| Some((d["slot"].as_u64()?, d["function"].as_u64()?));
    let wrong = |what: String| Err(Error::Mirror(what));
    for device in devices {
        let Some((slot, function)) = place(device) else { return wrong(format!("no address in {device}")) };
        if !functions.iter().any(|f| (u64::from(f.device), u64::from(f.function)) == (slot, function)) {
            return wrong(format!("QEMU has one more function, {slot:02x}.{function:x}"));
        }
    }
    for f in functions {
        let at = (u64::from(f.device), u64::from(f.function));
        let Some(device) = devices.iter().find(|d| place(d) == Some(at)) else {
            return wrong(format!("QEMU lacks function {:02x}.{:x}", f.device, f.function));
        };
        let bus = device["bus"].as_u64().and_then(|b| u8::try_from(b).ok()).unwrap_or(0);
        let mut real = regions(device);
        let mut wanted = f.bars.clone();
        real.sort_by_key(|b| b.index);
        wanted.sort_by_key(|b| b.index);
        if real != wanted {
            return wrong(format!("{:02x}.{:x} has {real:?}, not {wanted:?}", f.device, f.function));
        }
        for bar in real.into_iter().filter(|b| !b.is_rom()) {
            found.insert((f.id, bar.index), ((bus, f.device, f.function, bar.index), bar));
        }
        if let Role::Bridge(bridge) = &f.role {
            let below = match bridge.kind {
                BridgeKind::Expander { bus_nr } => bus_devices(buses, bus_nr.into()),
                _ => device["pci_bridge"]["devices"].as_array().map_or(&[] as &[Value], Vec::as_slice),
            };
            mirror(&bridge.children, below, buses, found)?;
        }
    }
    Ok(())
}

/// The BARs of a device as `query-pci` lists them.
fn regions(device: &Value) -> Vec<Bar> {
    let mut bars = Vec::new();
    for region in device["regions"].as_array().into_iter().flatten() {
        let is = |key: &str| region[key].as_bool().unwrap_or(false);
        let kind = match (region["type"] == "io", is("mem_type_64"), is("prefetch")) {
            (true, ..) => BarKind::Io,
            (_, false, false) => BarKind::Mem32,
            (_, false, true) => BarKind::Mem32Prefetchable,
            (_, true, false) => BarKind::Mem64,
            (_, true, true) => BarKind::Mem64Prefetchable,
        };
        let index = region["bar"].as_u64().and_then(|n| u8::try_from(n).ok());
        if let (Some(index), Some(size)) = (index, region["size"].as_u64()) {
            bars.push(Bar { index, size: Bytes(size), kind });
        }
    }
    bars
}

impl Seen {
    /// One word, and the reason where there is one.
    pub fn short(&self) -> String {
        match self {
            Seen::Refused(text) => format!("refused: {text}"),
            Seen::Placed(bars) => {
                let placed = bars.iter().filter(|b| b.address.is_some()).count();
                format!("finished, {placed} of {} BARs placed", bars.len())
            }
            Seen::Hung(proof) => format!("hung: {proof}"),
            Seen::TimedOut => "no answer in time".to_owned(),
        }
    }
}
