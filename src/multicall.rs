//! One binary, several names: by the name it was called, it is the command line, the emulator shim or libvirt's hook.
//!
//! Knows what each role may print and how it may end; the work itself is in the library's `deliver`. The shim becomes
//! the real QEMU by exec. The hook prints nothing on standard output, and fails only to refuse a start: whatever else
//! goes wrong with it would stop a guest, at `reconnect` a running one.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::panic;
use std::path::Path;
use std::process::{Command, ExitCode};

use barfit::deliver::confine;
use barfit::deliver::hook::{self, Reply};
use barfit::deliver::shim;

/// The root directory of everything that is read and written here.
const ROOT: &str = "/";

/// Plays the part that goes with the name this program was called by. `None` where that is the command line's.
pub(crate) fn by_name() -> Option<ExitCode> {
    let mut arguments = env::args_os();
    let called = arguments.next().unwrap_or_default();
    let name = Path::new(&called).file_name().unwrap_or(OsStr::new("barfit")).to_owned();
    if shim::is_emulator_name(&name) {
        return Some(be_emulator(&name, arguments.collect()));
    }
    let text = name.to_string_lossy();
    // A sidecar of KubeVirt is a command line with arguments of its own.
    if text == "onDefineDomain" {
        return None;
    }
    // `barfit hook` is the hook, too; it must not fail over how a command line is read.
    if text.starts_with("barfit") && arguments.next()? != "hook" {
        return None;
    }
    Some(be_hook(&arguments.collect::<Vec<_>>()))
}

/// libvirt's hook; `arguments` are those that libvirt gives. The domain is read from standard input.
fn be_hook(arguments: &[OsString]) -> ExitCode {
    // For the guests' users to read what is written here, and for nobody but root to write, whatever the daemon's is.
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    // Where the domain is none of barfit's business there is nothing to be confined with.
    if hook::reads_the_domain(arguments) {
        confine::confine(Path::new(ROOT));
    }
    // A panic's own message goes to standard error, which libvirt drops when a hook succeeds.
    let reply = panic::catch_unwind(|| hook::run(Path::new(ROOT), arguments, io::stdin()));
    let Reply { exit, message } = reply.unwrap_or_default();
    say(message.as_deref());
    ExitCode::from(exit)
}

fn be_emulator(name: &OsStr, arguments: Vec<OsString>) -> ExitCode {
    // A shim that fails must not cost the guest its start: it then runs what it was given.
    let planned = panic::catch_unwind(|| shim::launch(Path::new(ROOT), name, arguments.clone()));
    let launch = planned.unwrap_or_else(|_| shim::untouched(Path::new(ROOT), name, arguments));
    let error = match launch {
        Ok(launch) => {
            say(launch.message.as_deref());
            let error = Command::new(&launch.program).args(&launch.arguments).exec();
            format!("barfit: cannot run {}: {error}", launch.program.display())
        }
        Err(error) => error,
    };
    say(Some(&error));
    // What a shell says of a command that it cannot run.
    ExitCode::from(127)
}

fn say(message: Option<&str>) {
    if let Some(message) = message {
        // In one piece: others write to a guest's log, too.
        let _ = io::stderr().write_all(format!("{message}\n").as_bytes());
    }
}
