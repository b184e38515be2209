//! Tells a firmware that will never finish from one that is slow.
//!
//! Two proofs, neither of which a slow or busy machine can forge. *Still*: the virtual CPU's registers are the
//! same in many looks although it has run in between (edk2's `CpuDeadLoop` spins so), or it is halted with
//! interrupts off. *Silent*: it has used several times as much CPU time without a sign of progress as
//! the same firmware at the same width needs for a bare guest. Time is the CPU time of the virtual CPU's
//! thread, not of the wall clock.

use std::time::Duration;

/// This many looks in a row must show the same registers.
const STILL_LOOKS: u32 = 12;
/// CPU time that a spinning CPU must have used meanwhile.
const STILL_CPU: Duration = Duration::from_secs(2);
/// Silence below this is never suspicious.
pub(super) const SILENCE_FLOOR: Duration = Duration::from_secs(8);
/// How many times the known longest silence is too long.
const SILENCE_FACTOR: u32 = 5;

/// One look at the virtual CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// CPU time its thread has used since the start.
    cpu: Duration,
    /// General registers as the monitor prints them.
    registers: String,
    /// Instruction pointer.
    rip: u64,
    /// Halted with interrupts disabled.
    dead_halt: bool,
}

impl Look {
    /// Reads the text of the monitor's `info registers`, 64-bit or 32-bit; `None` when it is neither.
    pub(super) fn new(cpu: Duration, text: &str) -> Option<Look> {
        let field = |name: &str| text.split_once(name).and_then(|(_, rest)| rest.split_whitespace().next());
        let hex = |name| field(name).and_then(|t| u64::from_str_radix(t, 16).ok());
        let rip = hex("RIP=").or_else(|| hex("EIP="))?;
        let flags = hex("RFL=").or_else(|| hex("EFL="))?;
        let general =
            |l: &&str| l.starts_with(['R', 'E']) && !l.contains("IP=") && l.matches('=').count() == 4;
        let registers: Vec<&str> = text.lines().filter(general).collect();
        let dead_halt = field("HLT=") == Some("1") && flags & 0x200 == 0;
        (!registers.is_empty()).then(|| Look { cpu, registers: registers.join("\n"), rip, dead_halt })
    }

    fn same_place(&self, other: &Look) -> bool {
        // The loop itself is a few instructions long.
        self.registers == other.registers && self.rip.abs_diff(other.rip) < 32
    }
}

/// Collects looks until they prove something.
#[derive(Debug, Default)]
pub(super) struct Watch {
    first_same: Option<Look>,
    same: u32,
    progress_at: Duration,
    longest_silence: Duration,
}

impl Watch {
    /// The firmware showed a sign of life; its CPU time was `cpu` soon after.
    pub(super) fn progress(&mut self, cpu: Duration) {
        self.longest_silence = self.longest_silence.max(self.silence(cpu));
        self.progress_at = cpu;
        self.first_same = None;
    }

    /// CPU time since the last sign of life.
    pub(super) fn silence(&self, cpu: Duration) -> Duration {
        cpu.saturating_sub(self.progress_at)
    }

    /// The longest silence that ended.
    pub(super) fn longest_silence(&self) -> Duration {
        self.longest_silence
    }

    /// Takes a look; a text means that the firmware is proved to stand still.
    pub(super) fn still(&mut self, look: Look) -> Option<String> {
        let first = match &self.first_same {
            Some(first) if first.same_place(&look) => first,
            _ => {
                self.same = 0;
                self.first_same = Some(look);
                return None;
            }
        };
        self.same += 1;
        let spun = look.cpu.saturating_sub(first.cpu) >= STILL_CPU;
        (self.same >= STILL_LOOKS && (spun || look.dead_halt))
            .then(|| format!("the CPU stands still at {:#x}", look.rip))
    }

    /// Whether silence has lasted too long, measured against the `longest` that a bare guest needs.
    pub(super) fn silent(&self, cpu: Duration, longest: Duration) -> Option<String> {
        let bound = SILENCE_FLOOR.max(longest.saturating_mul(SILENCE_FACTOR));
        (self.silence(cpu) > bound).then(|| {
            format!(
                "no progress in {} s of CPU time, where a bare guest needs {} s",
                self.silence(cpu).as_secs(),
                longest.as_secs()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(second: u64, rax: u64, rip: u64, flags: u64, halted: u8) -> Look {
        let text = format!(
            "\nCPU#0\nRAX={rax:016x} RBX=0000000000000004 RCX=0000000000000000 RDX=0000000000000000\n\
             RIP={rip:016x} RFL={flags:08x} [-------] CPL=0 II=0 A20=1 SMM=0 HLT={halted}\nES =0030"
        );
        Look::new(Duration::from_secs(second), &text).expect("registers")
    }

    #[test]
    fn registers_of_both_widths_are_read_and_nothing_else() {
        let narrow = "\r\nCPU#0\r\nEAX=00000001 EBX=00000000 ECX=00000000 EDX=00000000\r\n\
                      EIP=fffcc0de EFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\r\n\
                      ES =0008 00000000 ffffffff 00cf9300";
        let look = Look::new(Duration::ZERO, narrow).expect("registers");
        assert_eq!((look.rip, look.dead_halt), (0xfffc_c0de, false));
        assert!(look.registers.starts_with("EAX=00000001"));
        assert_eq!(Look::new(Duration::ZERO, ""), None);
        assert_eq!(Look::new(Duration::ZERO, "RIP=0 RFL=2"), None);
    }

    #[test]
    fn a_dead_loop_is_proved_and_work_is_not() {
        let mut watch = Watch::default();
        let verdicts: Vec<_> = (0..20).map(|n| watch.still(look(n, 7, 0x1000 + n % 4, 0x2, 0))).collect();
        assert!(verdicts[..12].iter().all(Option::is_none));
        assert!(verdicts[12].is_some());

        let mut watch = Watch::default();
        assert!((0..50).all(|n| watch.still(look(n, n, 0x1000, 0x2, 0)).is_none()));
    }

    #[test]
    fn a_starved_cpu_is_not_a_dead_one() {
        let mut watch = Watch::default();
        assert!((0..50).all(|_| watch.still(look(3, 7, 0x1000, 0x2, 0)).is_none()));
    }

    #[test]
    fn a_halt_counts_only_with_interrupts_off() {
        let proved = |flags| {
            let mut watch = Watch::default();
            (0..20).any(|_| watch.still(look(3, 7, 0x1000, flags, 1)).is_some())
        };
        assert!(proved(0x46));
        assert!(!proved(0x246));
    }

    #[test]
    fn silence_is_measured_against_the_baseline() {
        let mut watch = Watch::default();
        watch.progress(Duration::from_secs(3));
        let at = Duration::from_secs;
        assert_eq!(watch.silent(at(10), at(1)), None);
        assert!(watch.silent(at(30), at(1)).is_some());
        assert_eq!(watch.silent(at(150), at(50)), None);
        assert!(watch.silent(at(260), at(50)).is_some());
    }
}
