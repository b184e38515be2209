//! What can be typed.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::catalogue::{self, Entry};
use crate::flavor::MOST_GPUS;
use crate::units::{Bytes, MIB};

/// Makes passed-through GPUs fit in big libvirt guests.
///
/// A guest with large-BAR GPUs loses some of them where RAM, BARs and the firmware's 64-bit window do not fit into its
/// physical address space. barfit computes the width that is needed, says why, and writes it into the domain.
///
/// Exit status: 0 fine; 1 the answer is no (does not fit, there is a diff); 2 usage, invalid input, a failed command.
#[derive(Parser)]
#[command(name = "barfit", version, max_term_width = 100, arg_required_else_help = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) verb: Verb,
    /// When to colour the output; NO_COLOR in the environment turns `auto` off
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(super) color: Colour,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Colour {
    Auto,
    Always,
    Never,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Human,
    Json,
}

#[derive(Subcommand)]
pub(super) enum Verb {
    /// Predict which devices get an address as a domain stands, and what to change
    ///
    /// With several domains: one line each, or with --verbose everything of each. Exit status 0: all devices of all
    /// domains are placed (or nothing is passed through); 1: some are not, a guest will not start, or it cannot be known.
    Check(Check),
    /// Show the change as a unified diff of the domain's XML
    ///
    /// The diff is fit for `patch -p1`. Exit status 0: nothing to change; 1: there is a diff.
    Diff(Diff),
    /// Print the whole corrected XML
    ///
    /// Without anything to change the output is the input, byte for byte; likewise where the policy's mode is
    /// `observe`. Where it is `strict`, a guest that would still lose a GPU is refused: status 1, no output.
    Rewrite(Rewrite),
    /// Ask the same of a guest that has no XML yet: how many bits a flavor needs
    Size(Size),
    /// Ask the real firmware, in the real QEMU with stand-in devices
    ///
    /// Boots the domain's firmware under TCG with a guest of the same RAM, width and PCI tree, as the domain stands and
    /// after the change, and compares what it does with what `check` predicts. No GPU, no root, no libvirt; nothing of
    /// the host is touched. Exit status: 0 prediction and truth agree; 1 they do not, or time was up.
    Prove(Prove),
    /// Print what barfit knows of this machine, in the format that --host reads
    Host(HostArguments),
    /// List the GPUs whose BARs barfit knows, by the names that --gpu and --assume-gpu take
    Catalogue(Catalogue),
    /// Make the planned change in libvirt's definitions, for the next start
    ///
    /// The change is shown and asked for, the old definition is kept, the new one is read back and compared, because
    /// libvirt drops in silence what it does not know. A domain for which that fails is as it was before.
    Apply(Apply),
    /// Put barfit in its places on this host: hook, emulator shim, policy, rules for AppArmor and SELinux
    ///
    /// Nothing that is there is overwritten. A guest is started through the shim before libvirt's daemon is told of it;
    /// whatever fails, everything goes back. Doing it again brings an installation up to date.
    Install(Install),
    /// Take barfit away and restore what was there before, byte for byte
    ///
    /// Files that were changed since are left and named.
    Uninstall(Uninstall),
    /// Check hook, shim, libvirt, QEMU, firmware and this machine; a domain; a guest's kernel log
    ///
    /// Exit status 0: nothing is wrong, though there may be warnings; 1: something is.
    Doctor(Doctor),
    /// Show what happened at the last start of each guest
    Status {
        /// How to show it
        #[arg(long, default_value = "human")]
        format: Format,
    },
    /// Print shell completions
    Completions {
        /// For which shell
        shell: Shell,
    },
    /// Print the manual page
    Man {
        /// Of this verb rather than of barfit as a whole
        verb: Option<String>,
    },
}

#[derive(Args)]
pub(super) struct Check {
    /// Domain XML: a file, `-` for standard input, or with --connect a domain's name
    #[arg(value_name = "DOMAIN", required = true)]
    pub(super) domains: Vec<OsString>,
    #[command(flatten)]
    pub(super) judging: Judging,
    /// With json: an object for one domain, one object a line for several
    #[arg(long, default_value = "human")]
    pub(super) format: Format,
    /// Everything: both address maps, and with several domains the whole answer for each
    #[arg(long, short)]
    pub(super) verbose: bool,
}

#[derive(Args)]
pub(super) struct Diff {
    /// Domain XML: a file, `-` for standard input, or with --connect a domain's name
    #[arg(value_name = "DOMAIN", required = true)]
    pub(super) domains: Vec<OsString>,
    #[command(flatten)]
    pub(super) judging: Judging,
}

#[derive(Args)]
pub(super) struct Rewrite {
    /// Domain XML: a file, `-` for standard input, or with --connect a domain's name
    pub(super) domain: OsString,
    #[command(flatten)]
    pub(super) judging: Judging,
}

#[derive(Args)]
pub(super) struct Prove {
    /// Domain XML: a file, `-` for standard input, or with --connect a domain's name
    #[arg(required_unless_present = "sweep")]
    pub(super) domain: Option<OsString>,
    /// How to show it; a sweep is JSON in any case, a line each
    #[arg(long, default_value = "human", conflicts_with = "sweep")]
    pub(super) format: Format,
    /// Only the domain as it stands
    #[arg(long)]
    pub(super) before: bool,
    /// Only the domain after the change
    #[arg(long, conflicts_with = "before")]
    pub(super) after: bool,
    /// Boot this Linux after the firmware and report what it can use
    #[arg(long, value_name = "FILE", requires = "initrd")]
    pub(super) kernel: Option<PathBuf>,
    /// Its initramfs
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(super) initrd: Option<PathBuf>,
    /// Random guests instead of a domain: how many; JSON, a line each
    #[arg(long, value_name = "N", conflicts_with_all = ["domain", "before", "after", "kernel", "connect", "host", "policy", "assume_gpu"])]
    pub(super) sweep: Option<u64>,
    /// Seed of the random guests
    #[arg(long, value_name = "S", default_value_t = 1, requires = "sweep")]
    pub(super) seed: u64,
    /// Number of the first random guest under the seed
    #[arg(long, value_name = "N", default_value_t = 0, requires = "sweep")]
    pub(super) from: u64,
    /// QEMUs side by side; as many as there are CPUs unless given
    #[arg(long, value_name = "N", requires = "sweep")]
    pub(super) jobs: Option<usize>,
    /// Seconds after which a boot is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub(super) timeout: u64,
    /// Another QEMU than the one in PATH
    #[arg(long, value_name = "FILE")]
    pub(super) qemu: Option<PathBuf>,
    /// Let the host's CPU execute the guest: faster, but it must be as wide as the guest
    #[arg(long)]
    pub(super) kvm: bool,
    /// Ask this libvirt for the domain
    #[arg(long, short, value_name = "URI")]
    pub(super) connect: Option<String>,
    /// Host facts (as `barfit host` prints them) instead of this machine
    #[arg(long, value_name = "FILE")]
    pub(super) host: Option<PathBuf>,
    /// The firmware to boot: a file, or an era that a file of this machine has; with --sweep files, as many as wanted
    #[arg(long, value_name = "PATH|ERA")]
    pub(super) firmware: Vec<String>,
    /// Policy instead of /etc/barfit/barfit.toml and /etc/barfit/barfit.d/*.toml
    #[arg(long, value_name = "FILE")]
    pub(super) policy: Option<PathBuf>,
    /// Take devices that no source knows to be this GPU
    #[arg(long, value_name = "SLUG", value_parser = gpu)]
    pub(super) assume_gpu: Option<&'static Entry>,
}

/// What a judgement rests on beside the domain.
#[derive(Args)]
pub(super) struct Judging {
    /// Ask this libvirt for the domain: `virsh dumpxml --inactive`, which leaves out passwords
    #[arg(long, short, value_name = "URI")]
    pub(super) connect: Option<String>,
    /// Host facts (as `barfit host` prints them) instead of this machine
    #[arg(long, value_name = "FILE")]
    pub(super) host: Option<PathBuf>,
    /// The guest's firmware: a file, an era of edk2 like 202211, or seabios-1.16.2
    #[arg(long, value_name = "PATH|ERA")]
    pub(super) firmware: Option<String>,
    /// Policy instead of /etc/barfit/barfit.toml and /etc/barfit/barfit.d/*.toml
    #[arg(long, value_name = "FILE")]
    pub(super) policy: Option<PathBuf>,
    /// Take devices that no source knows to be this GPU
    #[arg(long, value_name = "SLUG", value_parser = gpu)]
    pub(super) assume_gpu: Option<&'static Entry>,
}

#[derive(Args)]
pub(super) struct Size {
    /// How many GPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_GPUS)))]
    pub(super) gpus: u8,
    /// Which GPU: a name from `barfit catalogue`
    #[arg(long, value_name = "SLUG", value_parser = gpu)]
    pub(super) gpu: &'static Entry,
    /// RAM of the guest: 512G, 2T
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(super) ram: Bytes,
    /// Most RAM that hot-plug may bring it to
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(super) maxmem: Option<Bytes>,
    /// Slots for memory to be plugged
    #[arg(long, value_name = "N", default_value_t = 16, requires = "maxmem", value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(super) slots: u32,
    /// The guest's chipset
    #[arg(long, default_value = "q35")]
    pub(super) machine: Machine,
    /// Vendor of the host's CPU, where --host does not say
    #[arg(long, value_name = "VENDOR", default_value = "intel")]
    pub(super) cpu_vendor: Vendor,
    /// The guest's firmware: a file, an era of edk2 like 202211, or seabios-1.16.2; UEFI unless it says otherwise
    #[arg(long, value_name = "PATH|ERA")]
    pub(super) firmware: Option<String>,
    /// Host facts (as `barfit host` prints them): widths, versions and firmware count, its devices do not
    #[arg(long, value_name = "FILE")]
    pub(super) host: Option<PathBuf>,
    /// With json: the same object as `check`, of the domain that the table's last line is about
    #[arg(long, default_value = "human")]
    pub(super) format: Format,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Machine {
    Q35,
    Pc,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Vendor {
    Intel,
    Amd,
}

#[derive(Args)]
pub(super) struct HostArguments {
    /// Show these host facts instead of this machine's
    #[arg(long, value_name = "FILE")]
    pub(super) host: Option<PathBuf>,
    /// How to show them
    #[arg(long, default_value = "json")]
    pub(super) format: Format,
}

#[derive(Args)]
pub(super) struct Catalogue {
    /// Only devices whose name on the command line, full name or id contains this
    pub(super) filter: Option<String>,
    /// How to show them
    #[arg(long, default_value = "human")]
    pub(super) format: Format,
}

#[derive(Args)]
pub(super) struct Doctor {
    /// Domain: a file, `-` for standard input, or a name that libvirt knows
    pub(super) domain: Option<OsString>,
    /// The guest's kernel log (`dmesg`, `journalctl -k`), from its boot on
    #[arg(long, value_name = "FILE")]
    pub(super) dmesg: Option<PathBuf>,
    /// How to show it
    #[arg(long, default_value = "human")]
    pub(super) format: Format,
    #[command(flatten)]
    pub(super) judging: Judging,
}

#[derive(Args)]
pub(super) struct Apply {
    /// Names (or UUIDs) of persistent domains
    #[arg(value_name = "NAME", required_unless_present = "all")]
    pub(super) domains: Vec<String>,
    /// All persistent domains
    #[arg(long, conflicts_with = "domains")]
    pub(super) all: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(super) yes: bool,
    /// Give the definition back that was there before
    #[arg(long)]
    pub(super) undo: bool,
    #[command(flatten)]
    pub(super) judging: Judging,
}

#[derive(Args)]
pub(super) struct Install {
    /// Say what would be done, do nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Install into the tree of an image: files only, no command is run
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(super) root: PathBuf,
    /// Without the emulator shim: the hook reports, and refuses in strict mode, but corrects nothing
    #[arg(long)]
    pub(super) no_shim: bool,
}

#[derive(Args)]
pub(super) struct Uninstall {
    /// Say what would be done, do nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Remove from the tree of an image
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(super) root: PathBuf,
}

/// A GPU by its name on the command line.
fn gpu(slug: &str) -> Result<&'static Entry, String> {
    catalogue::by_slug(slug).ok_or_else(|| {
        let similar: Vec<String> = catalogue::similar_slugs(slug).iter().map(|s| format!("`{s}`")).collect();
        match similar.as_slice() {
            [] => "no such device; `barfit catalogue` lists them".to_owned(),
            [one] => format!("no such device; did you mean {one}?"),
            [others @ .., last] => {
                format!("no such device; did you mean {} or {last}?", others.join(", "))
            }
        }
    })
}

/// A size in MiB or larger: `512G`, `1920GiB`, `2T`.
fn size(text: &str) -> Result<Bytes, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let unit = match unit.to_ascii_lowercase().as_str() {
        "m" | "mib" => MIB,
        "g" | "gib" => MIB << 10,
        "t" | "tib" => MIB << 20,
        _ => return Err("write a whole number and a unit, M, G or T (binary units): 512G".to_owned()),
    };
    let number = digits.parse::<u64>().ok().filter(|n| *n > 0);
    let bytes = number.and_then(|n| n.checked_mul(unit)).filter(|bytes| *bytes < 1 << 52);
    bytes.map(Bytes).ok_or_else(|| "this is no size from 1M to less than 4096T".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::units::{GIB, TIB};

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_read() {
        for (text, bytes) in [
            ("512G", Some(512 * GIB)),
            ("1920GiB", Some(1920 * GIB)),
            ("2t", Some(2 * TIB)),
            ("1m", Some(MIB)),
            ("512", None),
            ("0G", None),
            ("1.5T", None),
            ("-1G", None),
            ("4096T", None),
            ("99999999999999999999G", None),
            ("", None),
        ] {
            assert_eq!(size(text).ok(), bytes.map(Bytes), "{text}");
        }
    }
}
