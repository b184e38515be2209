//! Runs the command and checks what it prints on either side and how it ends, always all three.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A call of barfit and what is expected of it: exit status 0, nothing printed on either side, unless said otherwise.
#[must_use]
pub(crate) struct Barfit {
    command: Command,
    stdin: Vec<u8>,
    /// `None`: any.
    status: Option<i32>,
    stdout: Expected,
    stderr: Expected,
}

/// What an output has to be.
enum Expected {
    Is(String),
    Contains(Vec<String>),
    Anything,
}

impl Barfit {
    /// `barfit ARGUMENTS`, run in the project's root, with an environment that does not depend on who runs it.
    pub(crate) fn new<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Barfit {
        Barfit::from(Command::new(env!("CARGO_BIN_EXE_barfit"))).args(arguments)
    }

    /// `barfit` with its address space limited, so that memory that grows with the input fails.
    pub(crate) fn in_memory_of(mib: u64) -> Barfit {
        let mut shell = Command::new("sh");
        let limit = format!("ulimit -v {} && exec \"$0\" \"$@\"", mib << 10);
        shell.args(["-c", &limit, env!("CARGO_BIN_EXE_barfit")]);
        Barfit::from(shell)
    }

    fn from(mut command: Command) -> Barfit {
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        for variable in ["NO_COLOR", "TERM", "COLUMNS", "LINES"] {
            command.env_remove(variable);
        }
        let nothing = || Expected::Is(String::new());
        Barfit { command, stdin: Vec::new(), status: Some(0), stdout: nothing(), stderr: nothing() }
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Barfit {
        self.command.args(arguments);
        self
    }

    /// `--host` of a host that ships.
    pub(crate) fn on(self, host: &str) -> Barfit {
        self.args(["--host".to_owned(), format!("examples/hosts/{host}.json")])
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Barfit {
        self.command.env(name, value);
        self
    }

    pub(crate) fn directory(mut self, directory: &Path) -> Barfit {
        self.command.current_dir(directory);
        self
    }

    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Barfit {
        self.stdin = bytes.into();
        self
    }

    pub(crate) fn status(mut self, status: i32) -> Barfit {
        self.status = Some(status);
        self
    }

    /// The caller looks at the answer itself: yes or no, but no failure.
    pub(crate) fn any_status(mut self) -> Barfit {
        self.status = None;
        self
    }

    pub(crate) fn stdout(mut self, text: impl Into<String>) -> Barfit {
        self.stdout = Expected::Is(text.into());
        self
    }

    pub(crate) fn stdout_contains(mut self, part: impl Into<String>) -> Barfit {
        self.stdout = and(self.stdout, part.into());
        self
    }

    /// The caller looks at the output itself.
    pub(crate) fn any_stdout(mut self) -> Barfit {
        self.stdout = Expected::Anything;
        self
    }

    pub(crate) fn stderr(mut self, text: impl Into<String>) -> Barfit {
        self.stderr = Expected::Is(text.into());
        self
    }

    pub(crate) fn stderr_contains(mut self, part: impl Into<String>) -> Barfit {
        self.stderr = and(self.stderr, part.into());
        self
    }

    /// Runs it; gives what it printed on standard output.
    pub(crate) fn run(self) -> Vec<u8> {
        self.outputs().0
    }

    /// Runs it; gives the text that it printed on standard error. Nothing may be on standard output.
    pub(crate) fn failure(mut self) -> String {
        self.stderr = Expected::Contains(vec!["barfit: ".to_owned()]);
        let (_, stderr) = self.outputs();
        String::from_utf8(stderr).expect("messages are UTF-8")
    }

    fn outputs(mut self) -> (Vec<u8>, Vec<u8>) {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().expect("barfit runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        let bytes = std::mem::take(&mut self.stdin);
        // Fed from the side: the child may stop reading, or write before it has read everything.
        let feeder = std::thread::spawn(move || drop(stdin.write_all(&bytes)));
        let Output { status, stdout, stderr } = child.wait_with_output().expect("barfit ends");
        feeder.join().expect("standard input is fed");
        let told = format!(
            "{:?}\n--- stdout\n{}\n--- stderr\n{}\n--- {status}",
            self.command.get_args().collect::<Vec<_>>(),
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        );
        self.stdout.check("stdout", &stdout, &told);
        self.stderr.check("stderr", &stderr, &told);
        match self.status {
            Some(expected) => assert_eq!(status.code(), Some(expected), "exit status of {told}"),
            None => assert!(matches!(status.code(), Some(0 | 1)), "exit status of {told}"),
        }
        (stdout, stderr)
    }

    /// Runs it; gives the text that it printed on standard output.
    pub(crate) fn text(self) -> String {
        String::from_utf8(self.run()).expect("output is UTF-8")
    }
}

fn and(expected: Expected, part: String) -> Expected {
    match expected {
        Expected::Contains(mut parts) => {
            parts.push(part);
            Expected::Contains(parts)
        }
        _ => Expected::Contains(vec![part]),
    }
}

impl Expected {
    fn check(&self, which: &str, bytes: &[u8], told: &str) {
        let text = String::from_utf8_lossy(bytes);
        match self {
            Expected::Is(expected) => assert!(*text == **expected, "{which} should be {expected:?}: {told}"),
            Expected::Contains(parts) => {
                for part in parts {
                    assert!(text.contains(part), "{which} lacks {part:?}: {told}");
                }
            }
            Expected::Anything => {}
        }
    }
}
