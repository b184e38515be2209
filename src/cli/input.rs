//! Reading what the command line names: files and standard input, never more than a bound, and domains from libvirt.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use super::output::Failure;

/// Largest input, in bytes: four times what libvirt takes for a domain, and more than any host file.
const LARGEST: u64 = 16 << 20;

/// The bytes of an input and what to call it in messages.
#[derive(Clone, Debug)]
pub(super) struct Input {
    pub(super) label: String,
    pub(super) bytes: Vec<u8>,
}

/// The domains that the arguments name, in their order. What is wrong is said of each of them.
pub(super) fn domains(arguments: &[OsString], connect: Option<&str>) -> Result<Vec<Input>, Failure> {
    one_standard_input(arguments)?;
    gather(arguments.iter().map(|argument| domain(argument, connect)))
}

/// Refuses arguments of which two are `-`.
pub(super) fn one_standard_input(arguments: &[OsString]) -> Result<(), Failure> {
    if arguments.iter().filter(|argument| *argument == "-").count() > 1 {
        return Err(Failure::new("`-` can be given once: there is one standard input"));
    }
    Ok(())
}

/// The domain that an argument names.
pub(super) fn domain(argument: &OsStr, connect: Option<&str>) -> Result<Input, Failure> {
    match connect {
        Some(uri) => from_libvirt(uri, argument),
        None if argument == "-" => standard_input(),
        None => file(Path::new(argument)),
    }
}

/// All results, or all failures.
pub(super) fn gather<T>(results: impl Iterator<Item = Result<T, Failure>>) -> Result<Vec<T>, Failure> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => good.push(value),
            Err(failure) => bad.push(failure),
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(Failure::all(bad)) }
}

/// The bytes of a file.
pub(super) fn file(path: &Path) -> Result<Input, Failure> {
    let label = path.display().to_string();
    let bytes = File::open(path).and_then(bounded).map_err(|error| {
        let hint = if error.kind() == io::ErrorKind::NotFound {
            "; a domain that libvirt knows needs --connect URI"
        } else {
            ""
        };
        Failure::new(format!("{label}: {error}{hint}"))
    })?;
    checked(label, bytes)
}

/// The text of a file other than a domain.
pub(super) fn text_file(path: &Path) -> Result<(String, String), Failure> {
    let label = path.display().to_string();
    let bytes = File::open(path).and_then(bounded).map_err(|e| Failure::new(format!("{label}: {e}")))?;
    let Input { label, bytes } = checked(label, bytes)?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok((label, text)),
        Err(error) => {
            let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
            let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
            let start = good.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let column = 1 + String::from_utf8_lossy(&good[start..]).chars().count();
            Err(Failure::new(format!("{label}:{line}:{column}: this is not UTF-8; save the file as UTF-8")))
        }
    }
}

fn standard_input() -> Result<Input, Failure> {
    let label = "<stdin>".to_owned();
    let bytes = bounded(io::stdin().lock()).map_err(|error| Failure::new(format!("{label}: {error}")))?;
    checked(label, bytes)
}

/// Up to one byte more than the bound.
fn bounded(input: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(LARGEST + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn checked(label: String, bytes: Vec<u8>) -> Result<Input, Failure> {
    if bytes.len() as u64 > LARGEST {
        let mib = LARGEST >> 20;
        return Err(Failure::new(format!(
            "{label}:1:1: this is larger than {mib} MiB, and so no input of barfit's"
        )));
    }
    Ok(Input { label, bytes })
}

/// The domain as libvirt keeps it.
fn from_libvirt(uri: &str, name: &OsStr) -> Result<Input, Failure> {
    let label = name.to_string_lossy().into_owned();
    let option = |name: &str, value: &OsStr| {
        let mut word = OsString::from(name);
        word.push(value);
        word
    };
    let output = Command::new("virsh")
        .arg(option("--connect=", OsStr::new(uri)))
        .args(["--quiet", "dumpxml", "--inactive"])
        .arg(option("--domain=", name))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            Failure::new(format!("virsh: {error}; install libvirt's client (libvirt-clients)"))
        })?;
    if output.status.success() {
        return checked(label, output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said
        .lines()
        .map(|line| line.trim_start_matches("error: ").trim())
        .filter(|l| !l.is_empty())
        .collect();
    Err(Failure::new(format!("{label}: virsh --connect {uri}: {}", said.join("; "))))
}
