//! One structured line per event: to the journal in its native protocol, else to syslog, else to standard error.
//!
//! Best effort by design: a full or missing journal must not hold up a guest, so nothing here blocks or fails.
//! Every value is sent length-prefixed, so that a newline or control character in a guest's name stays inside
//! its field. Protocol: systemd's `JOURNAL_NATIVE_PROTOCOL`.

use std::borrow::Cow;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::text::printable;

/// How urgent a line is; syslog's numbers.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Something is wrong.
    Error = 3,
    /// Something may be wrong.
    Warning = 4,
    /// What happened.
    Info = 6,
}

/// The daemon facility of syslog.
const DAEMON: u8 = 3;

/// Sends a line with its fields (upper-case names). Returns the line if neither journal nor syslog took it: the
/// caller may put it on standard error.
#[must_use]
pub fn send(root: &Path, priority: Priority, message: &str, fields: &[(&str, &str)]) -> Option<String> {
    // journalctl shows a message with control characters as so many bytes of data, which nobody reads.
    let message = &printable(&bounded(message));
    let Ok(socket) = UnixDatagram::unbound() else { return Some(message.clone()) };
    let _ = socket.set_nonblocking(true);
    let native = native(priority, message, fields);
    if socket.send_to(&native, root.join("run/systemd/journal/socket")).is_ok() {
        return None;
    }
    let syslog = format!("<{}>barfit[{}]: {message}", DAEMON * 8 + priority as u8, std::process::id());
    socket.send_to(syslog.as_bytes(), root.join("dev/log")).is_err().then(|| message.clone())
}

fn native(priority: Priority, message: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let priority = (priority as u8).to_string();
    let own = [("MESSAGE", message), ("PRIORITY", priority.as_str()), ("SYSLOG_IDENTIFIER", "barfit")];
    let mut bytes = Vec::with_capacity(256);
    for (name, value) in own.into_iter().chain(fields.iter().copied()) {
        let value = bounded(value);
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(b'\n');
        bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(b'\n');
    }
    bytes
}

/// The beginning of a text that may be of any length: a datagram has an end, and so has a reader's patience.
pub(super) fn bounded(text: &str) -> Cow<'_, str> {
    const MOST: usize = 4000;
    if text.len() <= MOST {
        return Cow::Borrowed(text);
    }
    let end = (0..=MOST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    Cow::Owned(format!("{}…", &text[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_to_their_field() {
        let bytes = native(Priority::Info, "a\nPRIORITY=0", &[("BARFIT_DOMAIN", "x\ny")]);
        let start = b"MESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\nPRIORITY\n\x01\0\0\0\0\0\0\x006\n";
        assert!(bytes.starts_with(start), "{:?}", String::from_utf8_lossy(&bytes));
        assert!(bytes.ends_with(b"BARFIT_DOMAIN\n\x03\0\0\0\0\0\0\0x\ny\n"));
    }

    #[test]
    fn syslog_takes_what_the_journal_does_not() {
        let root = tempfile::tempdir().expect("a folder");
        assert_eq!(
            send(root.path(), Priority::Info, "one\u{1b}[2Jline\n", &[]),
            Some("one\\u{1b}[2Jline\\n".into())
        );
        std::fs::create_dir_all(root.path().join("dev")).expect("made");
        let log = UnixDatagram::bind(root.path().join("dev/log")).expect("bound");
        assert_eq!(send(root.path(), Priority::Error, "gone", &[]), None);
        let mut buffer = [0; 256];
        let length = log.recv(&mut buffer).expect("received");
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        assert!(text.starts_with("<27>barfit[") && text.ends_with("]: gone"), "{text}");
    }
}
