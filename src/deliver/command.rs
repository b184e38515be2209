//! Child processes of `install`, `apply` and `doctor`: run to their end, within a bound of time, and their words kept.
//!
//! The hook and the shim never use this: they start no process.

use std::ffi::OsStr;
use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// No command of ours takes longer, even on a host that emulates every instruction.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs a program and gives what it printed.
///
/// # Errors
/// It cannot be started, fails, or takes too long: the command line, and what it said.
pub(super) fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<Vec<u8>, String> {
    let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
    let line = format!("{program} {}", words.join(" "));
    let failed = |why: String| format!("`{line}`: {why}");
    let io = |error: std::io::Error| failed(error.to_string());
    // Files, so that a child with much to say never waits for a reader.
    let mut output = tempfile::tempfile().map_err(io)?;
    let mut complaints = tempfile::tempfile().map_err(io)?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(io)?)
        .stderr(complaints.try_clone().map_err(io)?)
        .spawn()
        .map_err(io)?;
    let begun = Instant::now();
    let mut pause = Duration::from_millis(1);
    let status = loop {
        match child.try_wait().map_err(io)? {
            Some(status) => break status,
            None if begun.elapsed() > PATIENCE => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("not finished after {} s", PATIENCE.as_secs())));
            }
            None => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
        }
    };
    let read = |file: &mut std::fs::File| -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(io)?;
        Ok(bytes)
    };
    if status.success() {
        return read(&mut output);
    }
    let said = read(&mut complaints)?;
    let said = String::from_utf8_lossy(&said);
    let said: Vec<&str> = said.lines().map(|l| l.trim_start_matches("error: ").trim()).collect();
    let said: Vec<&str> = said.into_iter().filter(|line| !line.is_empty()).collect();
    Err(failed(if said.is_empty() { status.to_string() } else { said.join("; ") }))
}

/// Whether a program can be found in PATH.
pub(super) fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
