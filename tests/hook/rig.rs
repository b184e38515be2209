//! A libvirtd of one test with barfit installed, and what can be asked of its guests: see
//! `tests/libvirt/private-libvirtd`. Commands run beside the daemon; the journal is this test's own socket.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use barfit::prove::trace::{EVENTS, Register, Step, Trace};
use serde_json::Value;

/// OVMF 2025.02, which is quick, where nothing but the guests looks.
const FIRMWARE: &str = "/usr/share/barfit-test";

/// How long a firmware may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) struct Rig {
    child: Child,
    pid: u32,
    journal: UnixDatagram,
    uri: String,
    /// Goes before `libvirtd` when it is started again.
    launcher: String,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Rig {
    /// Starts the daemons. `install` is what brings barfit (or nothing) there before that.
    pub(crate) fn start(install: &str) -> Rig {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(root.join("tests/libvirt/private-libvirtd"))
            .args(["--cpu-bits", "46", "--install", install])
            .args(["sh", "-c", "echo ready; exec sleep infinity"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("private-libvirtd runs");
        let mut ready = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut ready).expect("a line");
        if ready != "ready\n" {
            let mut why = String::new();
            let _ = child.stderr.take().expect("a pipe").read_to_string(&mut why);
            panic!("{why}");
        }
        let pid = inside(child.id()).expect("a process in namespaces of its own");
        let socket = PathBuf::from(format!("/proc/{pid}/root/run/systemd/journal/socket"));
        fs::create_dir_all(socket.parent().expect("a folder")).expect("made");
        let journal = UnixDatagram::bind(socket).expect("bound");
        journal.set_nonblocking(true).expect("set");
        Rig { child, pid, journal, uri: "qemu:///system".to_owned(), launcher: String::new() }
    }

    /// A file of the namespaces, as seen from outside.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    /// Runs a shell command beside the daemon.
    pub(crate) fn run(&self, command: &str) -> Said {
        let output = Command::new("nsenter")
            .args(["--mount", "--pid", "--net", "--target", &self.pid.to_string()])
            .args([
                "env",
                "LC_ALL=C",
                &format!("LIBVIRT_DEFAULT_URI={}", self.uri),
                "timeout",
                "300",
                "sh",
                "-c",
            ])
            .arg(command)
            .output()
            .expect("nsenter runs (Debian: util-linux)");
        Said {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a shell command that must succeed; returns what it prints.
    #[track_caller]
    pub(crate) fn must(&self, command: &str) -> String {
        let said = self.run(command);
        assert_eq!(said.status, 0, "`{command}`: {said:?}\njournal: {:#?}", self.journal());
        said.stdout
    }

    /// Ends libvirtd and starts it again, as a restart of the service does; guests go on.
    pub(crate) fn restart_daemon(&self) {
        self.restart_daemon_with("/usr/libexec/barfit:/usr/sbin:/usr/bin:/sbin:/bin");
    }

    /// The same with another PATH.
    pub(crate) fn restart_daemon_with(&self, path: &str) {
        self.must("pid=$(cat /run/libvirtd.pid); kill $pid; while [ -e /proc/$pid/exe ]; do sleep 0.1; done");
        // Not to the journal: nobody would read libvirt's lines there, and it would wait for that.
        self.must(&format!(
            "env -i LC_ALL=C HOME=/root PATH={path} \\
             LIBVIRT_LOG_OUTPUTS=3:file:/run/libvirtd.log libvirtd -d </dev/null >/run/libvirtd.out 2>&1"
        ));
        self.must("virsh -q uri");
        // Guests are taken up again by threads of their own.
        self.must("virsh -q list --all; sleep 1; virsh -q list --all");
    }

    /// Makes this a host of another name and identity, whose libvirtd has its sockets in `folder`; returns its address.
    pub(crate) fn become_another_host(&mut self, folder: &Path) -> String {
        let conf = format!(
            "host_uuid = \"11111111-2222-4333-8444-555555555555\"\nunix_sock_dir = \"{}\"\n",
            folder.display()
        );
        self.write("/etc/libvirt/libvirtd.conf", &conf);
        self.launcher = "unshare --uts sh -c 'hostname other-host; exec \"$@\"' --".to_owned();
        self.uri = format!("qemu+unix:///system?socket={}/libvirt-sock", folder.display());
        self.restart_daemon();
        self.uri.clone()
    }

    /// What barfit has told the journal since the last time.
    pub(crate) fn journal(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length) = self.journal.recv(&mut buffer) {
            lines.extend(message(&buffer[..length]));
        }
        lines
    }

    /// Defines a domain and returns its text as libvirt keeps it.
    #[track_caller]
    pub(crate) fn define(&self, xml: &str) -> String {
        self.write("/run/test/domain.xml", xml);
        let name = xml.split_once("<name>").and_then(|(_, rest)| rest.split_once('<')).expect("a name").0;
        self.must("virsh -q define --validate /run/test/domain.xml");
        self.must(&format!("virsh dumpxml --inactive {name}"))
    }

    /// The command line of a running guest.
    #[track_caller]
    pub(crate) fn argv(&self, name: &str) -> Vec<String> {
        let line = self.must(&format!("tr '\\0' '\\n' </proc/$(cat /run/libvirt/qemu/{name}.pid)/cmdline"));
        line.lines().map(str::to_owned).collect()
    }

    /// QMP's answer by way of libvirt.
    #[track_caller]
    pub(crate) fn qmp(&self, name: &str, command: &str) -> Value {
        let text = self.must(&format!("virsh qemu-monitor-command {name} '{command}'"));
        serde_json::from_str::<Value>(&text).expect("JSON")["return"].clone()
    }

    /// The width that the guest's CPU has.
    #[track_caller]
    pub(crate) fn phys_bits(&self, name: &str) -> u64 {
        let cpus = self.qmp(name, r#"{"execute":"query-cpus-fast"}"#);
        let path = cpus[0]["qom-path"].as_str().expect("a CPU").to_owned();
        let get =
            format!(r#"{{"execute":"qom-get","arguments":{{"path":"{path}","property":"phys-bits"}}}}"#);
        self.qmp(name, &get).as_u64().expect("a number")
    }

    /// Waits until the firmware has placed what it places, `boots` times since the guest was started, then asks the
    /// monitor for the address of each stand-in's large BAR. Where the firmware's own mappings (QEMU's trace, in the
    /// guest's log) say that one is placed, the monitor must come to agree.
    #[track_caller]
    pub(crate) fn placed(&self, name: &str, boots: usize) -> Vec<Option<u64>> {
        let end = Instant::now() + PATIENCE;
        let mapped = loop {
            let log = fs::read_to_string(self.path(&format!("/var/log/libvirt/qemu/{name}.log")));
            let log = log.unwrap_or_default();
            let start = log.rfind(": starting up libvirt").unwrap_or(0);
            let mut trace = Trace::default();
            let mut ends = 0;
            let done = log[start..].lines().any(|line| {
                ends += usize::from(trace.line(line) == Step::Done);
                ends >= boots
            });
            if done {
                break large(trace.mapped().iter().map(|(register, address)| (*register, *address)));
            }
            assert!(Instant::now() < end, "the firmware of {name} is not done: {log}");
            sleep(Duration::from_millis(300));
        };
        loop {
            let pci = self.qmp(name, r#"{"execute":"query-pci"}"#);
            let seen: Vec<Option<u64>> = large_of(&pci);
            let addresses: Vec<u64> = seen.iter().copied().flatten().collect();
            if addresses == mapped {
                return seen;
            }
            assert!(Instant::now() < end, "{name}: mapped {mapped:x?}, but the monitor says {seen:x?}");
            sleep(Duration::from_millis(300));
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // The namespaces' processes die with their parent.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Behind root ports, register 2: where pci-testdev has its large BAR.
fn large(mapped: impl Iterator<Item = (Register, u64)>) -> Vec<u64> {
    let mut found: Vec<u64> =
        mapped.filter(|((bus, _, _, bar), _)| *bus > 0 && *bar == 2).map(|(_, address)| address).collect();
    found.sort_unstable();
    found
}

/// The same by the monitor: in the order of the addresses, unplaced ones first.
fn large_of(pci: &Value) -> Vec<Option<u64>> {
    let devices = |bus: &Value| bus["devices"].as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for port in pci.as_array().into_iter().flatten().flat_map(devices) {
        for device in devices(&port["pci_bridge"]) {
            for region in device["regions"].as_array().into_iter().flatten() {
                if region["bar"] == 2 {
                    // An unplaced BAR reads -1.
                    found.push(region["address"].as_u64().filter(|address| *address < 1 << 63));
                }
            }
        }
    }
    found.sort_unstable();
    found
}

/// The first process below this one that lives in a mount namespace of its own.
fn inside(pid: u32) -> Option<u32> {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = namespace(std::process::id());
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().filter_map(|word| word.parse().ok()).find_map(|child| {
        if namespace(child) != own && children_of_own_pids(child) { Some(child) } else { inside(child) }
    })
}

/// `unshare` itself has the mount namespace already, but only its child has the processes.
fn children_of_own_pids(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("NSpid:") && line.split_whitespace().count() > 2)
}

/// barfit's message in the journal's native protocol; `None` for those of libvirt, which it writes another way.
fn message(bytes: &[u8]) -> Option<String> {
    let (length, rest) = bytes.strip_prefix(b"MESSAGE\n")?.split_at_checked(8)?;
    let length = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
    Some(String::from_utf8_lossy(rest.get(..length)?).into_owned())
}

/// A guest with stand-ins: pci-testdev with a BAR of each of these sizes, each behind a root port of its own.
pub(crate) struct Guest<'a> {
    pub(crate) name: &'a str,
    /// Last digits of its UUID.
    pub(crate) number: u32,
    pub(crate) bars: &'a [&'a str],
}

impl Guest<'_> {
    pub(crate) fn uuid(&self) -> String {
        format!("5b0d2f6e-3d57-4c0e-9a53-6c2d7f{:06x}", self.number)
    }

    /// The emulator is whatever libvirt takes by itself; it runs as libvirt's own user.
    pub(crate) fn xml(&self) -> String {
        let mut words = Vec::new();
        for event in EVENTS {
            words.extend(["-trace".to_owned(), event.to_owned()]);
        }
        for (at, size) in self.bars.iter().enumerate() {
            let slot = 0x10 + at;
            words.extend([
                "-device".to_owned(),
                format!("pcie-root-port,id=gpu{at},chassis={slot},addr={slot:#x}"),
            ]);
            words.extend(["-device".to_owned(), format!("pci-testdev,bus=gpu{at},membar={size}")]);
        }
        let words: Vec<String> =
            words.iter().map(|word| format!("    <qemu:arg value='{word}'/>\n")).collect();
        format!(
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <loader readonly='yes' type='pflash'>{FIRMWARE}/OVMF_CODE_4M.fd</loader>
    <nvram template='{FIRMWARE}/OVMF_VARS_4M.fd'/>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>Skylake-Server</model></cpu>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
  <seclabel type='static' model='dac' relabel='yes'><label>libvirt-qemu:libvirt-qemu</label></seclabel>
  <qemu:commandline>
{words}  </qemu:commandline>
</domain>
",
            name = self.name,
            uuid = self.uuid(),
            words = words.concat(),
        )
    }
}

/// How barfit gets there.
pub(crate) fn install() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let firmware = root.join(".cache/firmware/trixie/usr/share/OVMF");
    assert!(firmware.is_dir(), "{} is missing: run tests/firmware/fetch", firmware.display());
    format!(
        "cp -r {} {FIRMWARE}; {} {}",
        firmware.display(),
        root.join("tests/libvirt/install-by-hand").display(),
        env!("CARGO_BIN_EXE_barfit")
    )
}
