//! A small machine to break: a tree that `chroot` makes the root, with an optimised static barfit, a GPU guest's definition,
//! four GPUs in `/sys`, a firmware with its package, an emulator that says how it was called, and a `virsh` that keeps
//! definitions in files. Nothing of the real machine is touched.
//!
//! Needs root (for chroot), and on Debian: busybox-static, strace.

#![allow(dead_code, reason = "each test crate uses its part")]

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

#[path = "trees.rs"]
pub(crate) mod trees;

/// The guest of `examples/four-h100.xml`.
pub(crate) const UUID: &str = "6f0c7d2e-6b0a-4a4e-9d55-0a4b1c6c2f01";
pub(crate) const NAME: &str = "llm-train-01";
pub(crate) const SHIM: &str = "/usr/libexec/barfit/qemu-system-x86_64";
pub(crate) const EMULATOR: &str = "/usr/bin/qemu-system-x86_64";
pub(crate) const PLANS: &str = "run/barfit/plans";
/// The width with which all four GPUs are placed.
pub(crate) const WIDTH: &str = "phys-bits=43";

/// An optimised static barfit, by `tests/static`. Built once, by whoever asks first.
pub(crate) fn shipped() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(root.join("tests/static"));
        let output = command.arg("program").stderr(Stdio::inherit()).output().expect("bash runs");
        assert!(output.status.success(), "the optimised build fails");
        PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim_end())
    })
}

pub(crate) struct Sandbox {
    root: tempfile::TempDir,
    journal: UnixDatagram,
}

/// How a program ended and what it said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

impl Sandbox {
    pub(crate) fn new() -> Sandbox {
        let root = trees::folder();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let journal = root.path().join("run/systemd/journal");
        fs::create_dir_all(&journal).expect("made");
        let journal = UnixDatagram::bind(journal.join("socket")).expect("bound");
        journal.set_nonblocking(true).expect("set");
        let sandbox = Sandbox { root, journal };
        sandbox.furnish();
        sandbox
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    pub(crate) fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, bytes).expect("written");
    }

    /// A program with this content.
    pub(crate) fn program(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let mut content = tempfile::NamedTempFile::new().expect("a file");
        content.write_all(bytes.as_ref()).expect("written");
        self.copy(content.path(), path);
    }

    /// A copy of a program or library. Made by a process of its own: a file that this one has open to write cannot be run
    /// while a child that another test has just made still has it open, too.
    fn copy(&self, from: &Path, to: &str) {
        let mut command = Command::new("install");
        command.args(["-D", "-m", "755"]).arg(from).arg(self.path(to));
        assert!(command.status().expect("install runs").success(), "{} to {to}", from.display());
    }

    fn furnish(&self) {
        let busybox =
            ["/usr/bin/busybox", "/bin/busybox"].map(Path::new).into_iter().find(|path| path.exists());
        self.copy(busybox.expect("busybox is there (Debian: busybox-static)"), "bin/busybox");
        for name in ["sh", "cat", "cp", "mv", "ls", "grep", "sed", "rm", "mkfifo", "mount", "env", "umask"] {
            symlink("busybox", self.path("bin").join(name)).expect("linked");
        }
        for name in ["tmp", "dev", "var/lib", "var/cache"] {
            fs::create_dir_all(self.path(name)).expect("made");
        }
        self.add_program("/usr/bin/strace", "/usr/bin/strace");
        for path in ["usr/bin/barfit", SHIM] {
            self.copy(shipped(), path);
        }
        self.program(EMULATOR, "#!/bin/sh\nfor word; do echo \"$word\"; done\n");
        self.program("etc/libvirt/hooks/qemu.d/50-barfit", include_bytes!("../../hooks/qemu.d/50-barfit"));
        self.program("usr/bin/virsh", include_bytes!("virsh"));
        self.write("dev/null", "");
        self.write("proc/sys/kernel/random/boot_id", "8d0f3bd3-7c3c-4b8e-b6a0-6c4dd9a0f6c9\n");
        self.write(
            "proc/cpuinfo",
            "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu lm pdpe1gb\n\
             address sizes\t: 46 bits physical, 48 bits virtual\n\n",
        );
        self.write("sys/class/iommu/dmar0/intel-iommu/cap", "8d2078c106f0466\n");
        self.write("usr/share/OVMF/OVMF_CODE_4M.fd", "firmware");
        self.write("var/lib/dpkg/info/ovmf.list", "/usr/share/OVMF/OVMF_CODE_4M.fd\n");
        let package = |name: &str, version: &str| {
            format!("Package: {name}\nStatus: install ok installed\nVersion: {version}\n\n")
        };
        let packages = [
            package("ovmf", "2022.11-6+deb12u2"),
            package("qemu-system-x86", "1:7.2+dfsg-7+deb12u18"),
            package("libvirt0", "9.0.0-4+deb12u2"),
        ];
        self.write("var/lib/dpkg/status", packages.concat());
        self.write("etc/barfit/barfit.toml", "mode = \"enforce\"\n");
        let lines = |bars: &[(u64, u64)]| -> String {
            let line = |at| {
                let size = bars.iter().find(|(index, _)| *index == at).map_or(0, |(_, size)| *size);
                if size == 0 { "0x0 0x0 0x0\n".to_owned() } else { format!("0x0 {:#x} 0x14220c\n", size - 1) }
            };
            (0..13).map(line).collect()
        };
        for address in ["0000:41:00.0", "0000:61:00.0", "0000:a1:00.0", "0000:c1:00.0"] {
            let device = format!("sys/bus/pci/devices/{address}");
            self.write(&format!("{device}/vendor"), "0x10de\n");
            self.write(&format!("{device}/device"), "0x2321\n");
            self.write(&format!("{device}/class"), "0x030200\n");
            self.write(
                &format!("{device}/modalias"),
                "pci:v000010DEd00002321sv000010DEsd000016C1bc03sc02i00\n",
            );
            self.write(&format!("{device}/numa_node"), "0\n");
            self.write(&format!("{device}/resource"), lines(&[(0, 16 << 20), (2, 128 << 30), (4, 32 << 20)]));
            symlink("/sys/kernel/iommu_groups/12", self.path(&device).join("iommu_group")).expect("linked");
        }
    }

    /// A program or library of this machine, with the libraries that it is linked with.
    pub(crate) fn add_program(&self, from: &str, to: &str) {
        let output = Command::new("ldd").arg(from).output().expect("ldd runs (Debian: libc-bin)");
        assert!(
            output.status.success() && Path::new(from).exists(),
            "{from} is missing (see tests/install-programs)"
        );
        let libraries = String::from_utf8(output.stdout).expect("paths");
        let libraries =
            libraries.split_whitespace().filter(|word| word.starts_with('/')).map(|path| (path, path));
        for (from, to) in libraries.chain([(from, to)]) {
            let _ = fs::remove_file(self.path(to));
            self.copy(Path::new(from), to);
        }
    }

    /// The guest's definition, through the shim as libvirt has it by itself.
    pub(crate) fn domain() -> String {
        include_str!("../../examples/four-h100.xml").replace(EMULATOR, SHIM)
    }

    /// A command that `words` is, in here, with nothing of the environment.
    pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Command {
        self.command_after("", words)
    }

    /// The same after shell commands in a mount namespace of its own, in which `$ROOT` is this machine's root.
    pub(crate) fn command_after<S: AsRef<std::ffi::OsStr>>(&self, before: &str, words: &[S]) -> Command {
        let mut command = if before.is_empty() {
            let mut command = Command::new("/usr/sbin/chroot");
            command.env_clear().arg(self.root());
            command
        } else {
            let mut command = Command::new("/usr/bin/unshare");
            command.env_clear();
            let script = format!("set -e; {before}\nexec chroot \"$ROOT\" \"$@\"");
            command.args(["--mount", "sh", "-c", &script, "sh"]).env("ROOT", self.root());
            command
        };
        command.args(words).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Calls the hook as libvirt does, with a domain on standard input.
    pub(crate) fn hook(&self, operation: &str, domain: &str) -> Said {
        run(self.command(&["/usr/bin/barfit", "hook", NAME, operation, "begin", "-"]), domain)
    }

    /// Starts the guest's emulator through the shim; what it prints are its arguments, a line each.
    pub(crate) fn start(&self) -> Said {
        run(self.command(&shim_words()), "")
    }

    /// The guest's plan; `None` where there is none. One that is half a plan fails.
    #[track_caller]
    pub(crate) fn plan(&self) -> Option<Value> {
        self.json(&format!("{PLANS}/{UUID}.json"))
    }

    /// A file of JSON; `None` where there is none. Half a file fails.
    #[track_caller]
    pub(crate) fn json(&self, path: &str) -> Option<Value> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path} is half: {error}: {text:?}")))
    }

    /// What barfit has told the journal since the last time: fields by name, a list each.
    pub(crate) fn journal(&self) -> Vec<Vec<(String, Vec<u8>)>> {
        let mut all = Vec::new();
        let mut buffer = vec![0; 1 << 20];
        while let Ok(length) = self.journal.recv(&mut buffer) {
            all.push(fields(&buffer[..length]));
        }
        all
    }

    /// The messages alone.
    pub(crate) fn messages(&self) -> Vec<String> {
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        self.journal().iter().map(|fields| text(&fields[0].1)).collect()
    }

    /// Every file that barfit has left, from the root on.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut all = Vec::new();
        for folder in ["run/barfit", "var/lib/barfit", "var/cache/barfit", "tmp"] {
            files(self.root(), &self.path(folder), &mut all);
        }
        all.sort();
        all
    }

    /// Takes away what barfit has left.
    pub(crate) fn clean(&self) {
        for folder in ["run/barfit", "var/lib/barfit", "var/cache/barfit"] {
            let _ = fs::remove_dir_all(self.path(folder));
        }
        self.journal();
    }
}

/// What libvirt calls to start the guest.
pub(crate) fn shim_words() -> [&'static str; 9] {
    [SHIM, "-name", NAME, "-uuid", UUID, "-cpu", "Skylake-Server", "-m", "1024"]
}

fn files(root: &Path, folder: &Path, all: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if fs::symlink_metadata(&path).is_ok_and(|facts| facts.is_dir()) {
            files(root, &path, all);
        } else {
            all.push(path.strip_prefix(root).expect("below").display().to_string());
        }
    }
}

/// Runs a command to its end with this on standard input.
pub(crate) fn run(mut command: Command, input: impl AsRef<[u8]>) -> Said {
    // By files: a program that does not read, or writes much, holds nobody up.
    let mut stdin = tempfile::tempfile().expect("a file");
    stdin.write_all(input.as_ref()).and_then(|()| stdin.rewind()).expect("written");
    let (mut stdout, mut stderr) =
        (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
    let own = |file: &File| file.try_clone().expect("a file");
    let mut child: Child = command
        .stdin(Stdio::from(stdin))
        .stdout(own(&stdout))
        .stderr(own(&stderr))
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let status = child.wait().expect("it ends");
    let text = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("read");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Said { status, stdout: text(&mut stdout), stderr: text(&mut stderr) }
}

/// A datagram of the journal's native protocol, taken apart as journald does: a line `NAME=value`, or a name alone and
/// a length before the value.
pub(crate) fn fields(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut fields = Vec::new();
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        let name = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("a name");
        if let Some(equals) = line.iter().position(|byte| *byte == b'=') {
            fields.push((name(&line[..equals]), line[equals + 1..].to_vec()));
            bytes = rest;
        } else {
            let (length, rest) = rest.split_at(8);
            let length = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
            assert_eq!(rest[length], b'\n', "a value ends with its line");
            fields.push((name(line), rest[..length].to_vec()));
            bytes = &rest[length + 1..];
        }
    }
    assert_eq!(bytes, b"", "a rest that no field is");
    fields
}
