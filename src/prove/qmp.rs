//! A small client of QEMU's machine protocol (QMP) on a Unix socket: greeting, one command at a time, events
//! skipped. Source: QEMU docs/interop/qmp-spec.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Error, Result};

/// QEMU answers within this, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection.
#[derive(Debug)]
pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and leaves negotiation mode. `Ok(None)` while nobody listens yet.
    pub(super) fn connect(socket: &Path) -> Result<Option<Qmp>> {
        let Ok(stream) = UnixStream::connect(socket) else { return Ok(None) };
        stream.set_read_timeout(Some(PATIENCE)).map_err(Error::io("monitor socket"))?;
        let mut qmp = Qmp { reader: BufReader::new(stream) };
        qmp.read()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(Some(qmp))
    }

    /// Runs a command and returns what `return` holds.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.reader.get_mut().write_all(line.as_bytes()).map_err(Error::io("monitor socket"))?;
        loop {
            let mut answer = self.read()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(Error::Monitor(format!("`{command}` failed: {error}")));
            }
        }
    }

    /// Runs a command of the human monitor and returns its text.
    pub(super) fn human(&mut self, command: &str) -> Result<String> {
        let answer = self.execute("human-monitor-command", json!({"command-line": command}))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Err(Error::Monitor("the connection was closed".to_owned())),
            Ok(_) => serde_json::from_str(&line).map_err(|e| Error::Monitor(format!("no JSON: {e}"))),
            Err(source) => Err(Error::Io { what: "monitor socket".to_owned(), source }),
        }
    }
}
