//! QEMU's options as words: `-cpu`, `-global` and `-fw_cfg`, read and corrected by QEMU's own rules.
//!
//! Knows how QEMU splits and ranks what it is told (measured with 7.2): in `-cpu` the last `name=value` wins over
//! earlier ones, `+name` over all of those, `-name` over everything; `-cpu` wins over `-global`; the last `-global`
//! wins, whether it names `cpu` or `x86_64-cpu`; the last `-cpu` replaces the others whole. In `-fw_cfg` a comma in a
//! value is doubled and the first word may be a bare name. Does not know where the words come from: the same rules
//! serve a command line and the arguments in a domain XML.

use std::ops::Range;

use crate::domain::MMIO64;
use crate::domain::qemu_options::{self, Options, Part, number, option_name, parts, switch};
use crate::plan::{Change, CpuGlobal, MaxPhysAddrValue};

/// Words under correction. A word that is not UTF-8 is `None`: barfit never wrote it and never touches it.
pub(super) struct Words {
    /// Each word, as it is by now.
    pub(super) words: Vec<Option<String>>,
    /// Words that go.
    pub(super) removed: Vec<bool>,
    /// Words that come after the others.
    pub(super) appended: Vec<String>,
}

/// Who gives QEMU the CPU's properties.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    /// These words: the whole command line of QEMU.
    CommandLine,
    /// libvirt, from `<cpu>`; the words here come after its own, and only contradict or replace them.
    Libvirt,
}

/// A property that the CPU shall have.
struct Want {
    property: &'static str,
    value: String,
    /// Stated even where nobody states the contrary.
    stated: bool,
}

impl Words {
    pub(super) fn new(words: Vec<Option<String>>) -> Words {
        Words { removed: vec![false; words.len()], words, appended: Vec::new() }
    }

    /// Makes the changes.
    pub(super) fn make(&mut self, changes: &[Change], carrier: Carrier) {
        // What goes away goes first: the others shall see the words as QEMU will.
        for change in changes {
            match change {
                Change::SetMmio64Mib(mib) => self.set_mmio64(Some(*mib)),
                Change::RemoveMmio64 => self.set_mmio64(None),
                Change::SetCpuGlobal(_) | Change::SetMaxPhysAddr(_) | Change::RequireFeature(_) => {}
            }
        }
        for change in changes {
            let by_global = matches!(change, Change::SetCpuGlobal(_));
            for want in self.wants(change) {
                self.settle(&want, carrier, by_global);
            }
        }
    }

    /// What a change means for the CPU's properties.
    fn wants(&self, change: &Change) -> Vec<Want> {
        let on = |property| Want { property, value: "on".to_owned(), stated: true };
        let no_limit = Want { property: "host-phys-bits-limit", value: "0".to_owned(), stated: false };
        match change {
            Change::SetMaxPhysAddr(MaxPhysAddrValue::Emulate(bits))
            | Change::SetCpuGlobal(CpuGlobal::PhysBits(bits)) => vec![
                Want { property: "phys-bits", value: bits.to_string(), stated: true },
                Want {
                    property: "host-phys-bits",
                    value: "off".to_owned(),
                    stated: self.takes_host_width_unasked(),
                },
            ],
            Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { limit: Some(limit) }) => vec![
                on("host-phys-bits"),
                Want { property: "host-phys-bits-limit", value: limit.to_string(), stated: true },
            ],
            Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { limit: None })
            | Change::SetCpuGlobal(CpuGlobal::HostPhysBits) => vec![on("host-phys-bits"), no_limit],
            Change::SetCpuGlobal(CpuGlobal::HostPhysBitsLimit(limit)) => {
                vec![Want { property: "host-phys-bits-limit", value: limit.to_string(), stated: true }]
            }
            Change::RequireFeature(feature) => vec![on(feature)],
            Change::SetMmio64Mib(_) | Change::RemoveMmio64 => Vec::new(),
        }
    }

    /// Whether `host-phys-bits` is on without a word: `-cpu host` and `-cpu max` under KVM (QEMU
    /// `target/i386/host-cpu.c`), and the machine types of RHEL and of Ubuntu's `-hpb` by their compat properties.
    fn takes_host_width_unasked(&self) -> bool {
        let model = self.last_cpu().and_then(|at| self.word(at)).and_then(|cpu| cpu.split(',').next());
        let machine = self.values(&["machine", "M"]).last().and_then(|at| self.word(*at));
        let machine = machine.map(|value| Options::parse(value, "type"));
        let machine = machine.as_ref().and_then(|options| options.get("type"));
        matches!(model, Some("host" | "max"))
            || machine.is_some_and(|name| name.contains("-rhel") || name.ends_with("-hpb"))
    }

    /// Sees to one property, by the word that decides it.
    fn settle(&mut self, want: &Want, carrier: Carrier, by_global: bool) {
        let globals = self.globals(want.property);
        let said = said(&globals, want);
        if let Some(at) = self.last_cpu() {
            let by_cpu = self.word(at).and_then(|cpu| cpu_state(cpu, want.property));
            match (by_cpu, said) {
                (Some(state), _) if same(&state, &want.value) => return,
                (None, Some(true)) => return,
                (None, None) if !want.stated => return,
                (None, _) if by_global && carrier == Carrier::Libvirt => {
                    return self.settle_globals(want, &globals);
                }
                _ => {}
            }
            if let Some(cpu) = &mut self.words[at] {
                *cpu = with_property(cpu, want.property, &want.value);
            }
            return;
        }
        // What libvirt writes into its own `-cpu` wins over any `-global`.
        let by_libvirt = carrier == Carrier::Libvirt && !by_global;
        if said != Some(true) && !(by_libvirt && want.stated) {
            self.settle_globals(want, &globals);
        }
    }

    /// Corrects the `-global` words of a property, or adds one.
    fn settle_globals(&mut self, want: &Want, globals: &[Global]) {
        for global in globals.iter().filter(|global| !same(&global.value, &want.value)) {
            if let Some(word) = &mut self.words[global.at] {
                word.replace_range(global.span.clone(), &want.value);
            }
        }
        if want.stated && !globals.iter().any(Global::is_generic) {
            let word = format!("{}.{}={}", GENERIC[0], want.property, want.value);
            self.appended.extend(["-global".to_owned(), word]);
        }
    }

    /// Gives OVMF's window entry this value, or takes it away. Of several entries one is left: QEMU refuses two of
    /// one name.
    fn set_mmio64(&mut self, mib: Option<u32>) {
        let mut kept = None;
        let mut left: Vec<usize> = Vec::with_capacity(self.words.len());
        for at in 0..self.words.len() {
            if let Some(&flag) = left.last()
                && self.option(flag, at) == Some("fw_cfg")
                && self.word(at).is_some_and(|word| Options::parse(word, "name").get("name") == Some(MMIO64))
            {
                if mib.is_none() || kept.is_some() {
                    self.removed[flag] = true;
                    self.removed[at] = true;
                    left.pop();
                    continue;
                }
                kept = Some(at);
            }
            left.push(at);
        }
        let Some(mib) = mib else { return };
        match kept.and_then(|at| self.words[at].as_mut()) {
            Some(word) => *word = with_string(word, &mib.to_string()),
            None => self.appended.extend(["-fw_cfg".to_owned(), format!("name={MMIO64},string={mib}")]),
        }
    }

    fn word(&self, at: usize) -> Option<&str> {
        self.words.get(at)?.as_deref()
    }

    fn last_cpu(&self) -> Option<usize> {
        self.values(&["cpu"]).last().copied()
    }

    /// Places of the values of these options, in order.
    fn values(&self, names: &[&str]) -> Vec<usize> {
        let left: Vec<usize> = (0..self.words.len()).filter(|at| !self.removed[*at]).collect();
        let pairs = left
            .windows(2)
            .filter(|pair| self.option(pair[0], pair[1]).is_some_and(|option| names.contains(&option)));
        pairs.map(|pair| pair[1]).collect()
    }

    /// The option that two neighbouring words are. No value of these begins with a dash: an option before another one,
    /// or at the end, has none and is left to QEMU's own complaint.
    fn option(&self, flag: usize, value: usize) -> Option<&str> {
        let has_value = !self.word(value).is_some_and(|word| word.starts_with('-'));
        self.word(flag).and_then(option_name).filter(|_| has_value)
    }

    /// What `-global` says of a property of the CPU, in order.
    fn globals(&self, property: &str) -> Vec<Global> {
        let values = self.values(&["global"]);
        values.into_iter().filter_map(|at| Global::read(self.word(at)?, at, property)).collect()
    }
}

/// Types that every x86 CPU is of. `x86-cpu` is none of them: QEMU ignores it.
const GENERIC: [&str; 2] = ["x86_64-cpu", "cpu"];

/// A `-global` of a CPU property.
struct Global {
    at: usize,
    driver: String,
    value: String,
    /// The value's place in the word.
    span: Range<usize>,
}

/// Whether the globals of a property say what is wanted; `None` when there is none.
fn said(globals: &[Global], want: &Want) -> Option<bool> {
    let is_right = |global: &Global| same(&global.value, &want.value);
    // Of those for every CPU the last counts; which CPU the others are for is not known here.
    let generic = globals.iter().rfind(|global| global.is_generic()).is_some_and(is_right);
    let special = globals.iter().filter(|global| !global.is_generic()).all(is_right);
    (!globals.is_empty()).then_some(generic && special)
}

impl Global {
    fn is_generic(&self) -> bool {
        GENERIC.contains(&self.driver.as_str())
    }

    fn read(word: &str, at: usize, property: &str) -> Option<Global> {
        let global = qemu_options::global(word)?;
        let driver = global.driver;
        let is_cpu = GENERIC.contains(&driver.as_str()) || driver.ends_with("-x86_64-cpu");
        let found = is_cpu && global.property == property;
        found.then_some(Global { at, driver, value: global.value, span: global.span })
    }
}

/// What a `-cpu` word says of a property.
fn cpu_state(cpu: &str, property: &str) -> Option<String> {
    let said: Vec<_> = cpu.split(',').skip(1).filter_map(|piece| of_property(piece, property)).collect();
    let by_sign = |sign, value: &str| said.iter().any(|(s, _)| *s == sign).then(|| value.to_owned());
    by_sign(Sign::Minus, "off")
        .or_else(|| by_sign(Sign::Plus, "on"))
        .or_else(|| said.last().map(|(_, value)| (*value).to_owned()))
}

/// A `-cpu` word in which a property has a value: where it was said last, or at the end.
fn with_property(cpu: &str, property: &str, value: &str) -> String {
    let mut pieces: Vec<&str> = cpu.split(',').collect();
    let is_said = |piece: &&str| of_property(piece, property).is_some();
    let new = format!("{property}={value}");
    match pieces.iter().skip(1).rposition(is_said) {
        Some(last) => {
            let last = last + 1;
            let mut at = 0;
            pieces[last] = &new;
            pieces.retain(|piece| {
                at += 1;
                at == 1 || at == last + 1 || !is_said(piece)
            });
        }
        None => pieces.push(&new),
    }
    pieces.join(",")
}

#[derive(Copy, Clone, PartialEq, Eq)]
enum Sign {
    Minus,
    Plus,
    Equals,
}

/// What a piece of a `-cpu` word says, if it is about the property. QEMU takes `_` for `-` in names.
fn of_property<'a>(piece: &'a str, property: &str) -> Option<(Sign, &'a str)> {
    let is_it = |name: &str| name.replace('_', "-") == property;
    if let Some(name) = piece.strip_prefix('-') {
        return is_it(name).then_some((Sign::Minus, "off"));
    }
    if let Some(name) = piece.strip_prefix('+') {
        return is_it(name).then_some((Sign::Plus, "on"));
    }
    let (name, value) = piece.split_once('=').unwrap_or((piece, "on"));
    is_it(name).then_some((Sign::Equals, value))
}

/// Whether QEMU takes two values for the same.
fn same(a: &str, b: &str) -> bool {
    a == b || switch(a).is_some() && switch(a) == switch(b) || number(a).is_some() && number(a) == number(b)
}

/// An fw_cfg entry whose content is this string, whatever it was before; the rest stays as it was spelled.
fn with_string(word: &str, value: &str) -> String {
    let is_content = |part: &Part<'_>| ["string", "file", "gen_id"].contains(&part.key);
    let parts = parts(word, "name");
    let contents: Vec<_> = parts.iter().filter(|part| is_content(part)).collect();
    if let [only] = contents[..] {
        let old = only.value.clone().and_then(|value| decimal(&word[value]));
        if only.key == "string" && old.is_some() && old == decimal(value) {
            return word.to_owned();
        }
    }
    let new = format!("string={value}");
    let mut written = false;
    let mut kept = Vec::new();
    for part in &parts {
        if !is_content(part) {
            kept.push(&word[part.whole.clone()]);
        } else if !written {
            kept.push(&new);
            written = true;
        }
    }
    if !written {
        kept.push(&new);
    }
    kept.join(",")
}

fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}
