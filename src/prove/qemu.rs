//! One running QEMU: its process, its private folder, its monitor, its trace. All of it is gone when the value is.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::qmp::Qmp;
use super::{Error, Result};

/// A Unix socket's path may be this long.
const SOCKET_PATH_MAX: usize = 107;

/// Name of the file in its folder that takes the guest's serial console.
pub(super) const CONSOLE: &str = "console";

/// What the trace pipe brought.
#[derive(Debug)]
pub(super) enum Line {
    /// A line of text.
    Text(String),
    /// Nothing within the time given.
    Nothing,
    /// QEMU has closed it: it has ended or is about to.
    Closed,
}

/// A running QEMU.
#[derive(Debug)]
pub(super) struct Qemu {
    child: Child,
    lines: Receiver<String>,
    monitor: Option<Qmp>,
    thread: Option<u64>,
    // Last, so that it goes after the process.
    folder: TempDir,
}

/// A private folder for one QEMU.
pub(super) fn folder() -> Result<TempDir> {
    let folder =
        tempfile::Builder::new().prefix("barfit-").tempdir().map_err(Error::io("temporary folder"))?;
    if folder.path().join("qmp").as_os_str().len() > SOCKET_PATH_MAX {
        let path = folder.path().display();
        return Err(Error::Unsupported(format!(
            "{path} is too long for a socket; set TMPDIR to a short one"
        )));
    }
    Ok(folder)
}

impl Qemu {
    /// Starts `program` with `arguments` that use the files of `folder`.
    pub(super) fn start(program: &Path, arguments: &[String], folder: TempDir) -> Result<Qemu> {
        let mut command = dying_with_parent(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Error::io(program.display().to_string()))?;
        let (sender, lines) = channel();
        if let Some(pipe) = child.stderr.take() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(pipe);
                let mut line = Vec::new();
                while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                    if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                        break;
                    }
                    line.clear();
                }
            });
        }
        Ok(Qemu { child, lines, monitor: None, thread: None, folder })
    }

    /// The next line of its trace and messages.
    pub(super) fn line(&self, wait: Duration) -> Line {
        match self.lines.recv_timeout(wait) {
            Ok(text) => Line::Text(text),
            Err(RecvTimeoutError::Timeout) => Line::Nothing,
            Err(RecvTimeoutError::Disconnected) => Line::Closed,
        }
    }

    /// Its monitor, once it listens.
    pub(super) fn monitor(&mut self) -> Result<Option<&mut Qmp>> {
        if self.monitor.is_none() {
            self.monitor = Qmp::connect(&self.folder.path().join("qmp"))?;
        }
        Ok(self.monitor.as_mut())
    }

    /// CPU time that the virtual CPU's thread has used; `None` before the monitor is there.
    pub(super) fn cpu_time(&mut self) -> Result<Option<Duration>> {
        if self.thread.is_none() {
            let Some(monitor) = self.monitor()? else { return Ok(None) };
            let cpus = monitor.execute("query-cpus-fast", json!({}))?;
            self.thread = cpus.pointer("/0/thread-id").and_then(serde_json::Value::as_u64);
        }
        let Some(thread) = self.thread else {
            return Err(Error::Monitor("`query-cpus-fast` names no thread".to_owned()));
        };
        let path = format!("/proc/{}/task/{thread}/schedstat", self.child.id());
        let text = std::fs::read_to_string(&path).map_err(Error::io(path))?;
        let nanoseconds = text.split_whitespace().next().and_then(|t| t.parse().ok());
        Ok(nanoseconds.map(Duration::from_nanos))
    }

    /// What the guest has written on its serial console so far.
    pub(super) fn console(&self) -> Result<String> {
        let path = self.folder.path().join(CONSOLE);
        let bytes = std::fs::read(&path).map_err(Error::io(path.display().to_string()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits for its end, which is near, and tells whether it was a success.
    pub(super) fn ended_well(&mut self) -> Result<bool> {
        self.child.wait().map(|status| status.success()).map_err(Error::io("waiting for QEMU"))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `setpriv` of util-linux, where there is one, lets QEMU die with us even when we are killed outright.
fn dying_with_parent(program: &Path) -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    if setpriv.is_file() {
        let mut command = Command::new(setpriv);
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}
