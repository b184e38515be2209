//! Turns `data/gpus.csv` into the catalogue's table, so that a start parses nothing and a bad row fails the build.

// A build script speaks to cargo on stdout.
#![allow(clippy::print_stdout)]

use std::collections::HashSet;
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const CSV: &str = "data/gpus.csv";
/// Which functions stand side by side.
const ORDER: &str = "data/hook.ld";
const HEADER: &str = "slug,vendor,device,class,function,name,bar,size,kind,confidence,mode,source";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={CSV}");
    println!("cargo::rerun-if-changed=build.rs");
    let text = fs::read_to_string(CSV)?;
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?;
    fs::write(Path::new(&out).join("catalogue_table.rs"), table(&text)?)?;
    link_unwinder();
    order_code();
    pack_relocations();
    Ok(())
}

/// Puts side by side what a hook and a shim execute. The kernel maps 64 KiB around each piece of code that is touched,
/// which is nearly all of a program whose code stands in any order. Linkers that take no such script go without.
fn order_code() {
    println!("cargo::rerun-if-changed={ORDER}");
    let of = |name: &str| env::var(name).unwrap_or_default();
    let linker = of("CARGO_ENCODED_RUSTFLAGS") + &of("RUSTC_LINKER");
    let others = ["mold", "wild", "gold"].iter().any(|other| linker.contains(other));
    if cfg("OS") == "linux" && of("OPT_LEVEL") != "0" && !others {
        for word in ["-T", &format!("{}/{ORDER}", of("CARGO_MANIFEST_DIR"))] {
            println!("cargo::rustc-link-arg-bin=barfit=-Xlinker");
            println!("cargo::rustc-link-arg-bin=barfit={word}");
        }
    }
}

/// Links the unwinder into the program instead of having it loaded at each start: a hook and a shim start often, and a
/// library more is a tenth of a millisecond. Where the compiler has only the shared one, that one it is.
fn link_unwinder() {
    if is_glibc() && !is_static() && file_of_compiler("libgcc_eh.a").is_some() {
        println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
    }
}

/// Writes the addresses that a static program adjusts at its start as a bit each instead of 24 bytes, where the C library
/// that is linked in can read that (glibc 2.36; what it says for programs that load it holds for it as well). A dynamic
/// program would not start with an older one than it was built with.
fn pack_relocations() {
    let known = || fs::read(file_of_compiler("libc.so.6")?).ok();
    let mark = b"GLIBC_ABI_DT_RELR";
    if is_glibc() && is_static() && known().is_some_and(|c| c.windows(mark.len()).any(|part| part == mark)) {
        println!("cargo::rustc-link-arg-bin=barfit=-Wl,-z,pack-relative-relocs");
    }
}

fn cfg(name: &str) -> String {
    env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default()
}

fn is_glibc() -> bool {
    cfg("OS") == "linux" && cfg("ENV") == "gnu"
}

fn is_static() -> bool {
    cfg("FEATURE").split(',').any(|feature| feature == "crt-static")
}

/// Where the compiler has a file for linking; `None` where it has none.
fn file_of_compiler(name: &str) -> Option<PathBuf> {
    let linker = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let found = Command::new(linker).arg(format!("-print-file-name={name}")).output().ok()?;
    let path = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
    // A compiler that does not find a file prints its name alone.
    (path.is_absolute() && path.exists()).then_some(path)
}

/// The Rust text of the table. Fields hold neither commas nor quotes, so that splitting is all it takes.
fn table(csv: &str) -> Result<String, Box<dyn Error>> {
    let mut lines = csv.lines();
    if lines.next() != Some(HEADER) {
        return Err(format!("{CSV}:1: the header must be `{HEADER}`").into());
    }
    let mut out = String::from("static ENTRIES: &[Entry] = &[\n");
    let mut head_before = None;
    let mut seen = HashSet::new();
    let mut ids = Vec::new();
    for (number, line) in lines.enumerate() {
        let at = |what: &str| format!("{CSV}:{}: {what}", number + 2);
        let fields: Vec<&str> = line.split(',').collect();
        let &[slug, vendor, device, class, function, name, index, size, kind, confidence, mode, source] =
            fields.as_slice()
        else {
            return Err(at("a row has 12 fields without commas").into());
        };
        if !is_hex(vendor, 4) || !is_hex(device, 4) || !is_hex(class, 6) {
            return Err(at("ids are 4 lower-case hex digits, the class 6").into());
        }
        let head = (slug, vendor, device, class, function, name);
        if head_before != Some(head) {
            if head_before.is_some() {
                out.push_str("]},\n");
            }
            head_before = Some(head);
            if !seen.insert(slug.to_owned()) || !seen.insert(format!("{vendor}:{device} {function}")) {
                return Err(at("slug or id already used; rows of one device stand together").into());
            }
            let vf = match function {
                "pf" => false,
                "vf" => true,
                _ => return Err(at("function is pf or vf").into()),
            };
            ids.push((u32::from_str_radix(&format!("{vendor}{device}"), 16)?, ids.len()));
            writeln!(
                out,
                "Entry {{ slug: {slug:?}, vendor: {vendor:?}, device: {device:?}, class: {class:?}, \
                 virtual_function: {vf}, name: {name:?}, rows: &["
            )?;
        }
        let index: u8 = index.parse().ok().filter(|i| *i <= 6).ok_or_else(|| at("bar is 0 to 6"))?;
        let size = bytes(size).ok_or_else(|| at("size is a power of two like 128G"))?;
        let kind = match kind {
            "io" => "Io",
            "mem32" => "Mem32",
            "mem64" => "Mem64",
            "mem64-prefetchable" => "Mem64Prefetchable",
            _ => return Err(at("unknown kind").into()),
        };
        let confidence = match confidence {
            "high" => "High",
            "medium" => "Medium",
            "low" => "Low",
            _ => return Err(at("confidence is high, medium or low").into()),
        };
        writeln!(
            out,
            "  Row {{ bar: Bar {{ index: {index}, size: Bytes({size:#x}), kind: BarKind::{kind} }}, \
             confidence: Confidence::{confidence}, mode: {mode:?}, source: {source:?} }},"
        )?;
    }
    out.push_str("]}];\n");
    // Places in the table by vendor and device, for a search by halves.
    ids.sort_unstable();
    writeln!(out, "static BY_ID: &[(u32, usize)] = &{ids:?};")?;
    Ok(out)
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) => (
            digits,
            if text.ends_with('K') {
                10
            } else if text.ends_with('M') {
                20
            } else {
                30
            },
        ),
        None => (text, 0),
    };
    let size = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    size.is_power_of_two().then_some(size)
}
