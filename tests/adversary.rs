//! Those who would use barfit, which is root's, against its host: the author of a domain, a local user, a guest that
//! has taken over its QEMU. The threat model in `docs/trust.md` names the test that holds each of its lines; the last
//! test here sees to it that each is there.
//!
//! Needs root and the packages that `tests/install-programs` installs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

#[path = "common/sandbox.rs"]
mod sandbox;

use sandbox::{EMULATOR, NAME, PLANS, SHIM, Sandbox, UUID, WIDTH, run, shim_words, shipped};

/// nobody, as which a guest's QEMU may run.
const NOBODY: &str = "65534:65534";

/// What an author may write where a name is expected.
fn hostile() -> Vec<String> {
    let mut texts: Vec<String> = [
        "a\nPRIORITY=0\n_UID=0\nMESSAGE=all is well",
        "a\u{9b}2Jb\u{9d}0;title\u{9c}",
        "a\u{7f}\u{85}b",
        "moc.elpmaxe\u{202e}gpj.exe\u{2066}",
        "zero\u{200b}width\u{feff}",
        "../../../../etc/cron.d/x",
        "/etc/passwd",
        "..",
        "-v",
        "--help",
        "$(touch /owned) `touch /owned` ; touch /owned |",
        "%s%n%x {} {0} {:?}",
        "<name>x</name>]]><!--&amp;\"'",
        "vm,phys-bits=52,-device,x",
        "",
        " ",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.push("n".repeat(1 << 20));
    texts
}

fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '<' => "&lt;".to_owned(),
        '&' => "&amp;".to_owned(),
        '\'' => "&apos;".to_owned(),
        '\n' => "&#10;".to_owned(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// A domain that says this wherever an author may say anything.
fn domain_of(text: &str) -> String {
    let text = escaped(text);
    Sandbox::domain()
        .replace(
            "<name>llm-train-01</name>",
            &format!(
                "<name>{text}</name><title>{text}</title><description>{text}</description><metadata>\
                 <nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'><nova:name>{text}</nova:name>\
                 <nova:flavor name='{text}'/></nova:instance></metadata>"
            ),
        )
        .replace("<model type='virtio' heads='1' primary='yes'/>", &format!("<model type='{text}'/>"))
        .replace("<target chassis='11' port='0x1a'/>", &format!("<target chassis='{text}' port='{text}'/>"))
}

/// Text that a person or a terminal can be shown: lines of plain characters.
#[track_caller]
fn assert_plain(text: &str, what: &str) {
    let odd = |c: &char| {
        (c.is_control() && *c != '\n')
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    assert_eq!(text.chars().find(odd), None, "{what}: {text:.400?}");
}

/// What a machine holds, but for what barfit may write.
fn elsewhere(sandbox: &Sandbox) -> BTreeSet<String> {
    let tree = sandbox::trees::tree(sandbox.root());
    let own = ["run/barfit", "var/lib/barfit", "var/cache/barfit"];
    let lines = tree.into_iter().filter(|(path, _)| !own.iter().any(|own| path.starts_with(own)));
    lines.map(|(path, what)| format!("{} {what}", path.display())).collect()
}

#[test]
fn a_domains_texts_stay_texts_in_the_hook() {
    let sandbox = Sandbox::new();
    let before = elsewhere(&sandbox);
    for text in hostile() {
        for xml in [domain_of(&text), Sandbox::domain().replace(SHIM, &format!("/{}", escaped(&text)))] {
            // The kernel lets no argument be longer than 128 KiB, nor hold a zero.
            let name = &text[..text.len().min(100 << 10)];
            for operation in ["prepare", "started", "restore", "migrate", "release", name] {
                let words = ["/usr/bin/barfit", "hook", name, operation, "begin", "-"];
                let begun = Instant::now();
                let said = run(sandbox.command(&words), &xml);
                assert_eq!((said.code(), said.stdout.as_str()), (Some(0), ""), "{text:.80?}: {said:?}");
                assert!(begun.elapsed() < Duration::from_secs(5), "{text:.80?} takes {:?}", begun.elapsed());
                assert_plain(&said.stderr, "standard error");
                for fields in sandbox.journal() {
                    let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
                    assert_eq!(
                        names,
                        [
                            "MESSAGE",
                            "PRIORITY",
                            "SYSLOG_IDENTIFIER",
                            "BARFIT_OPERATION",
                            "BARFIT_DOMAIN",
                            "BARFIT_UUID"
                        ]
                    );
                    let message = String::from_utf8(fields[0].1.clone()).expect("UTF-8");
                    assert_plain(&message, "journal");
                    assert!(!message.contains('\n') && message.len() < 40_000, "{message:.200}");
                }
            }
            for file in sandbox.left() {
                let name = Path::new(&file).file_stem().expect("a name").to_string_lossy();
                assert!(name == UUID || name == "firmware", "{file}");
            }
            sandbox.clean();
        }
    }
    assert_eq!(elsewhere(&sandbox), before);
}

#[test]
fn a_uuid_that_is_none_becomes_no_file_name() {
    let sandbox = Sandbox::new();
    let before = elsewhere(&sandbox);
    for uuid in [
        "../../../etc/cron.d/x",
        "..",
        "",
        "/etc/passwd",
        &UUID.to_uppercase(),
        &format!("{UUID}/../x"),
        &"a".repeat(36),
    ] {
        let xml = Sandbox::domain().replace(UUID, &escaped(uuid));
        for operation in ["restore", "prepare", "started", "release"] {
            let said = sandbox.hook(operation, &xml);
            assert_eq!(said.code(), Some(0), "{uuid}: {said:?}");
        }
        assert!(sandbox.plan().is_none());
        let left: Vec<String> =
            sandbox.left().into_iter().filter(|file| !file.ends_with("firmware.json")).collect();
        assert_eq!(left, Vec::<String>::new(), "{uuid}");
    }
    assert_eq!(elsewhere(&sandbox), before);
}

#[test]
fn a_domains_texts_do_not_command_the_terminal() {
    let sandbox = Sandbox::new();
    for text in hostile() {
        sandbox.write("d.xml", domain_of(&text));
        for verb in ["check", "size --gpus 1 --gpu h100-nvl --ram 1G", "doctor", "status"] {
            let mut words = vec!["/usr/bin/barfit"];
            words.extend(verb.split(' '));
            if ["check", "doctor"].contains(&verb) {
                words.push("/d.xml");
            }
            let said = run(sandbox.command(&words), "");
            assert_plain(&said.stdout, verb);
            assert_plain(&said.stderr, verb);
        }
        // As it is for a program, tamed for a terminal, which `script` is.
        for verb in ["diff", "rewrite", "check --format json"] {
            let line = format!("chroot {} /usr/bin/barfit {verb} /d.xml; true", sandbox.root().display());
            let shown = run(script(&line), "");
            assert_plain(&shown.stdout.replace('\r', "").replace("\u{1b}[", ""), verb);
        }
    }
    // A record that root wrote of such a domain.
    let named = domain_of("a\u{9b}2J").replace(SHIM, "/a\u{9b}2J");
    assert_eq!(sandbox.hook("prepare", &named).code(), Some(0));
    let said = run(sandbox.command(&["/usr/bin/barfit", "status"]), "");
    assert!(said.stdout.contains("is not barfit's shim"), "{said:?}");
    assert_plain(&said.stdout, "status");
}

/// A shell command on a terminal.
fn script(line: &str) -> Command {
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", line, "/dev/null"]).env("TERM", "xterm");
    command
}

/// Files that a domain names and the hook looks at: endless, blocking, huge, none.
#[test]
fn a_firmware_that_is_none_takes_neither_time_nor_memory() {
    let sandbox = Sandbox::new();
    sandbox.write("huge", "");
    fs::File::options()
        .write(true)
        .open(sandbox.path("huge"))
        .and_then(|file| file.set_len(1 << 40))
        .expect("sparse");
    for (before, path) in [
        ("mount --bind /dev $ROOT/dev", "/dev/zero"),
        ("mount --bind /dev $ROOT/dev", "/dev/urandom"),
        ("mount -t proc none $ROOT/proc", "/proc/kcore"),
        ("mount -t proc none $ROOT/proc", "/proc/self/mem"),
        ("rm -f $ROOT/pipe; mkfifo $ROOT/pipe", "/pipe"),
        (":", "/huge"),
        (":", "/huge/ovmf.fd"),
        (":", "/"),
        (":", "/../../../../../../huge"),
    ] {
        for name in [path.to_owned(), format!("{path}/OVMF_CODE.fd")] {
            let xml = Sandbox::domain().replace("/usr/share/OVMF/OVMF_CODE_4M.fd", &name);
            let words = ["/bin/sh", "-c", "ulimit -v 400000; exec /usr/bin/barfit hook vm prepare begin -"];
            let begun = Instant::now();
            let said = run(sandbox.command_after(before, &words), &xml);
            assert_eq!(said.code(), Some(0), "{name}: {said:?}");
            assert!(begun.elapsed() < Duration::from_secs(8), "{name} takes {:?}", begun.elapsed());
        }
    }
}

/// Whatever the daemon's umask is: others read plans, and write nothing.
#[test]
fn nobody_but_root_can_write_what_the_hook_writes() {
    for umask in ["000", "022", "077", "777"] {
        let sandbox = Sandbox::new();
        let line = format!("umask {umask}; exec /usr/bin/barfit hook {NAME} \"$0\" begin -");
        for operation in ["restore", "prepare", "prepare"] {
            let said = run(sandbox.command(&["/bin/sh", "-c", &line, operation]), Sandbox::domain());
            assert_eq!(said.code(), Some(0), "{said:?}");
        }
        for path in [
            "run/barfit",
            PLANS,
            "run/barfit/starts",
            "var/lib/barfit",
            "var/lib/barfit/applied",
            "var/cache/barfit",
        ] {
            let facts = fs::metadata(sandbox.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!((facts.uid(), facts.mode() & 0o7777), (0, 0o755), "{umask} {path}");
        }
        for file in sandbox.left() {
            let facts = fs::metadata(sandbox.path(&file)).expect("there");
            assert_eq!((facts.uid(), facts.mode() & 0o7777), (0, 0o644), "{umask} {file}");
        }
        // The guest's user reads its plan.
        let said = run(as_nobody(&sandbox, &shim_words()), "");
        assert!(said.stdout.contains(WIDTH), "{umask}: {said:?}");
        // And cannot do anything to it.
        let words = [
            "/bin/sh",
            "-c",
            &format!(
                "cd /{PLANS} && rm -f *; mv {UUID}.json x; cp /etc/barfit/barfit.toml x; cp x {UUID}.json; ls"
            ),
        ];
        let said = run(as_nobody(&sandbox, &words), "");
        assert_eq!(said.stdout, format!("{UUID}.json\n"), "{said:?}");
        assert!(sandbox.plan().is_some());
    }
}

fn as_nobody(sandbox: &Sandbox, words: &[&str]) -> Command {
    let mut command = Command::new("/usr/sbin/chroot");
    command.arg(format!("--userspec={NOBODY}")).arg(sandbox.root()).args(words);
    command
}

/// Plans that a local user has made or bent, should one ever get that far: the guest starts as it was called.
#[test]
fn a_forged_plan_is_not_followed() {
    let sandbox = Sandbox::new();
    let plan = sandbox.path(&format!("{PLANS}/{UUID}.json"));
    type Forgery = (&'static str, fn(&Path));
    let forgeries: [Forgery; 10] = [
        ("somebody's", |plan| chown(plan, Some(65534), None).expect("chown")),
        ("its group may write", |plan| {
            fs::set_permissions(plan, fs::Permissions::from_mode(0o664)).expect("chmod")
        }),
        ("everybody may write", |plan| {
            fs::set_permissions(plan, fs::Permissions::from_mode(0o646)).expect("chmod")
        }),
        ("a link to a file of root's", |plan| {
            fs::rename(plan, plan.with_extension("moved")).expect("moved");
            symlink(plan.with_extension("moved"), plan).expect("linked");
        }),
        ("a second name of a file", |plan| {
            fs::hard_link(plan, plan.with_extension("second")).expect("linked")
        }),
        ("a pipe", |plan| {
            fs::remove_file(plan).expect("removed");
            assert!(Command::new("mkfifo").arg(plan).status().expect("mkfifo runs").success());
        }),
        ("a folder", |plan| {
            fs::remove_file(plan).expect("removed");
            fs::create_dir(plan).expect("made");
        }),
        ("huge", |plan| {
            fs::File::options().write(true).open(plan).and_then(|file| file.set_len(1 << 40)).expect("sparse")
        }),
        ("in a folder that others may write to", |plan| {
            fs::set_permissions(plan.parent().expect("a folder"), fs::Permissions::from_mode(0o777))
                .expect("chmod");
        }),
        ("in a folder that is a link", |plan| {
            let folder = plan.parent().expect("a folder");
            fs::rename(folder, folder.with_extension("moved")).expect("moved");
            symlink("plans.moved", folder).expect("linked");
        }),
    ];
    for (what, forge) in forgeries {
        sandbox.clean();
        assert_eq!(sandbox.hook("prepare", &Sandbox::domain()).code(), Some(0));
        assert!(sandbox.start().stdout.contains(WIDTH), "{what}");
        forge(&plan);
        let begun = Instant::now();
        let start = sandbox.start();
        assert_eq!(start.code(), Some(0), "{what}: {start:?}");
        assert!(!start.stdout.contains(WIDTH), "{what}: {start:?}");
        assert!(start.stderr.starts_with("barfit: "), "{what}: {start:?}");
        assert_plain(&start.stderr, what);
        assert!(begun.elapsed() < Duration::from_secs(2), "{what}");
    }
}

/// What lies in the way of a plan, links included, is replaced, and what a link leads to stays as it is.
#[test]
fn the_hook_follows_no_link_where_it_writes() {
    let sandbox = Sandbox::new();
    sandbox.write("etc/victim", "as it was");
    let files = [
        format!("{PLANS}/{UUID}.json"),
        format!("run/barfit/starts/{UUID}.json"),
        format!("run/barfit/restoring/{UUID}"),
        format!("var/lib/barfit/applied/{UUID}.json"),
    ];
    for file in &files {
        let path = sandbox.path(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        symlink("/etc/victim", &path).expect("linked");
    }
    for operation in ["prepare", "started", "restore", "release"] {
        assert_eq!(sandbox.hook(operation, &Sandbox::domain()).code(), Some(0));
        assert_eq!(
            fs::read_to_string(sandbox.path("etc/victim")).expect("there"),
            "as it was",
            "{operation}"
        );
    }
}

/// Nothing in the environment, and no file but a test's, makes the program that ships behave otherwise.
#[test]
fn neither_environment_nor_path_nor_a_fault_file_counts() {
    let sandbox = Sandbox::new();
    for fault in ["prepare panic", "prepare abort", "shim panic", "shim abort", "started abort"] {
        sandbox.write("run/barfit/fault", fault);
        for evil in ["virsh", "qemu-system-x86_64", "sh", "systemctl"] {
            sandbox.program(&format!("evil/{evil}"), "#!/bin/sh\necho >/owned\n");
        }
        let environment = |command: &mut Command| {
            command.env_clear().env("PATH", "/evil").env("HOME", "/evil").env("TMPDIR", "/evil");
            for name in ["ROOT", "FAULT", "PLANS", "POLICY", "HOST", "SHIM", "EMULATOR", "CONFIG", "LOG"] {
                command.env(format!("BARFIT_{name}"), "/evil");
            }
            for name in ["LD_LIBRARY_PATH", "RUST_BACKTRACE", "RUST_LOG", "NOTIFY_SOCKET", "JOURNAL_STREAM"] {
                command.env(name, "/evil");
            }
        };
        let mut hook = sandbox.command(&["/usr/bin/barfit", "hook", NAME, "prepare", "begin", "-"]);
        environment(&mut hook);
        let said = run(hook, Sandbox::domain());
        assert_eq!(said.code(), Some(0), "{fault}: {said:?}");
        assert!(sandbox.plan().is_some(), "{fault}: {:?}", sandbox.messages());
        let mut shim = sandbox.command(&shim_words());
        environment(&mut shim);
        let said = run(shim, "");
        assert!(said.stdout.contains(WIDTH), "{fault}: {said:?}");
        assert!(!sandbox.path("owned").exists(), "{fault}");
    }
    let program = fs::read(shipped()).expect("read");
    let holds = |text: &[u8]| program.windows(text.len()).any(|window| window == text);
    assert!(
        holds(PLANS.as_bytes()) && !holds(b"run/barfit/fault"),
        "faults are built into the program that ships"
    );
}

/// The calls of a program that name a file, as strace shows them.
fn traced(sandbox: &Sandbox, calls: &str, command: &[&str], input: &str) -> Vec<String> {
    let strace = ["/usr/bin/strace", "-f", "-s", "300", "-o", "/trace", "-e", calls];
    let said = run(sandbox.command(&[&strace, command].concat()), input);
    assert_eq!(said.code(), Some(0), "{said:?}");
    let text = fs::read_to_string(sandbox.path("trace")).expect("a trace");
    text.lines().filter(|line| line.contains('(')).map(str::to_owned).collect()
}

/// The file that a call names first.
fn file(call: &str) -> &str {
    call.split('"').nth(1).unwrap_or_default()
}

/// As the guest's user and under its profile, the shim needs two files, and becomes QEMU: nothing else.
#[test]
fn the_shim_opens_its_own_plan_and_runs_qemu() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.hook("prepare", &Sandbox::domain()).code(), Some(0));
    let calls = traced(&sandbox, "trace=%file,%network,%process,write", &shim_words(), "");
    let end =
        calls.iter().position(|call| call.contains("execve(") && file(call) == EMULATOR).expect("QEMU runs");
    let mut opened = BTreeSet::new();
    for call in &calls[1..end] {
        assert!(!call.contains("socket(") && !call.contains("clone") && !call.contains("fork("), "{call}");
        assert!(
            !call.contains("O_WRONLY") && !call.contains("O_RDWR") && !call.contains("O_CREAT"),
            "{call}"
        );
        assert!(!call.contains(" write(") || call.contains(" write(2, \"barfit: "), "{call}");
        if call.contains("openat(") && !file(call).starts_with("/proc/self/") {
            opened.insert(file(call).to_owned());
        }
    }
    let plan = format!("/{PLANS}/{UUID}.json");
    assert_eq!(opened, BTreeSet::from([plan, "/proc/sys/kernel/random/boot_id".to_owned()]));
    assert_eq!(calls[..=end].iter().filter(|call| call.contains("execve(")).count(), 2);
}

/// The hook starts no program, opens no connection but to the journal, and writes below its own folders alone; the
/// kernel holds it to that (Landlock), where the kernel can.
#[test]
fn the_hook_runs_nothing_and_writes_below_its_own_folders() {
    let sandbox = Sandbox::new();
    for operation in ["restore", "prepare", "started", "release", "prepare"] {
        let words = ["/usr/bin/barfit", "hook", NAME, operation, "begin", "-"];
        let calls = traced(
            &sandbox,
            "trace=%file,%network,%process,landlock_restrict_self",
            &words,
            &Sandbox::domain(),
        );
        let own = |path: &str| {
            ["/run/barfit", "/var/lib/barfit", "/var/cache/barfit"].iter().any(|own| path.starts_with(own))
        };
        assert_eq!(calls.iter().filter(|call| call.contains("execve(")).count(), 1, "{operation}");
        for call in &calls {
            let writes = [
                "O_WRONLY", "O_RDWR", "O_CREAT", "rename(", "unlink(", "mkdir(", " link(", "linkat(",
                "symlink(", "chmod(",
            ];
            if writes.iter().any(|word| call.contains(word)) {
                assert!(own(file(call)), "{operation}: {call}");
            }
            if call.contains("socket(") {
                assert!(call.contains("AF_UNIX, SOCK_DGRAM"), "{operation}: {call}");
            }
            if call.contains("sendto(") {
                assert!(call.contains("/run/systemd/journal/socket"), "{operation}: {call}");
            }
        }
        let confined = calls.iter().find(|call| call.contains("landlock_restrict_self"));
        assert!(
            confined.is_some_and(|call| call.ends_with("= 0")),
            "this kernel has no Landlock? {confined:?}"
        );
    }
}

/// Should root's own plan hold what no hook writes: it is refused whole, or changes the width and the window alone.
#[test]
fn a_hostile_plan_adds_no_option() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.hook("prepare", &Sandbox::domain()).code(), Some(0));
    let path = sandbox.path(&format!("{PLANS}/{UUID}.json"));
    let plan = sandbox.plan().expect("a plan");
    let as_called = run(sandbox.command(&shim_words()), "").stdout;
    assert!(as_called.contains(WIDTH));
    for (changes, follows) in [
        (r#"[{"set-max-phys-addr":{"emulate":46}}]"#, Some("Skylake-Server,phys-bits=46")),
        (r#"[{"set-mmio64-mib":4294967295}]"#, Some("name=opt/ovmf/X-PciMmio64Mb,string=4294967295")),
        (r#"[{"set-mmio64-mib":4294967296}]"#, None),
        (r#"[{"set-mmio64-mib":"1,file=/etc/shadow"}]"#, None),
        (r#"[{"set-max-phys-addr":{"emulate":"43,vmx=on"}}]"#, None),
        (r#"[{"set-max-phys-addr":{"emulate":53}}]"#, None),
        (r#"[{"set-max-phys-addr":{"emulate":-1}}]"#, None),
        (r#"[{"require-feature":"pdpe1gb,+vmx"}]"#, None),
        (r#"[{"require-feature":"vmx"}]"#, None),
        (r#"[{"set-cpu-global":{"phys-bits":43,"driver":"x"}}]"#, None),
        (r#"[{"add-argument":"-device"}]"#, None),
        (r#"["-device"]"#, None),
        (r#""-device""#, None),
    ] {
        let mut hostile = plan.clone();
        hostile["changes"] = serde_json::from_str(changes).expect("JSON");
        hostile["name"] = "-device\u{9b}2J".into();
        hostile["summary"] = "a\nb\u{1b}[2J".into();
        fs::write(&path, hostile.to_string()).expect("written");
        let start = sandbox.start();
        assert_eq!(start.code(), Some(0), "{changes}: {start:?}");
        assert_plain(&start.stderr, changes);
        let words: Vec<&str> = start.stdout.lines().collect();
        let called = &shim_words()[1..];
        match follows {
            Some(word) => {
                assert!(words.contains(&word), "{changes}: {words:?}");
                let added: Vec<&&str> = words.iter().filter(|word| !called.contains(word)).collect();
                assert!(
                    added.iter().all(|added| **added == word || **added == "-fw_cfg"),
                    "{changes}: {words:?}"
                );
            }
            None => {
                assert_eq!(words, called, "{changes}");
                assert!(start.stderr.contains("is not for this start"), "{changes}: {start:?}");
            }
        }
    }
    // Another guest's plan under this one's name.
    let mut other = plan;
    other["uuid"] = "00000000-0000-4000-8000-000000000000".into();
    fs::write(&path, other.to_string()).expect("written");
    assert!(!sandbox.start().stdout.contains(WIDTH));
}

/// `apply` hands libvirt a file in the temporary folder, with the domain's passwords in it.
#[test]
fn a_temporary_file_is_roots_alone() {
    let sandbox = Sandbox::new();
    sandbox.write(&format!("domains/{UUID}.xml"), Sandbox::domain());
    let calls = traced(&sandbox, "trace=openat", &["/usr/bin/barfit", "apply", "--yes", NAME], "");
    let made: Vec<&String> =
        calls.iter().filter(|call| file(call).starts_with("/tmp/") && call.contains("O_CREAT")).collect();
    assert!(!made.is_empty(), "{calls:#?}");
    for call in made {
        assert!(call.contains("O_EXCL") && call.contains(", 0600)"), "{call}");
    }
    let backup = fs::metadata(sandbox.path(&format!("var/lib/barfit/backup/{UUID}.xml"))).expect("a backup");
    assert_eq!(backup.mode() & 0o7777, 0o600);
    assert_eq!(fs::metadata(sandbox.path("var/lib/barfit/backup")).expect("a folder").mode() & 0o7777, 0o700);
}

/// The emulator finds the process as it would without the shim: descriptors, signals, environment, folder.
#[test]
fn the_emulator_inherits_what_libvirt_gave() {
    let sandbox = Sandbox::new();
    sandbox.program(
        EMULATOR,
        "#!/bin/sh\ngrep -e ^Sig[PBIC] -e ^Cap -e ^NoNewPrivs -e ^Umask /proc/self/status\nls /proc/self/fd\nenv\npwd\n",
    );
    let before = "mount -t proc none $ROOT/proc; exec 7</dev/null; exec 9>/dev/null; umask 027; trap '' USR1";
    let mut direct = shim_words();
    direct[0] = EMULATOR;
    let of = |words: &[&str]| run(sandbox.command_after(before, words), "").stdout;
    let expected = of(&direct);
    assert!(expected.contains("SigIgn") && expected.contains("\n7\n"), "{expected}");
    assert_eq!(of(&shim_words()), expected);
}

/// The page's threat model names tests; each is there.
#[test]
fn each_line_of_the_threat_model_has_its_test() {
    let docs = include_str!("../docs/trust.md");
    let (_, section) = docs.split_once("## Threat model\n").expect("a section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut named = 0;
    for row in section.lines().filter(|line| line.starts_with("| ") && !line.contains("| --- ")).skip(1) {
        let tests: Vec<&str> =
            row.rsplit('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test: {row}");
        for test in tests {
            let (path, name) = test.split_once("::").unwrap_or((test, ""));
            let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
                .unwrap_or_else(|error| panic!("{path}: {error}: {row}"));
            assert!(name.is_empty() || text.contains(&format!("fn {name}(")), "{test} is not there: {row}");
            named += 1;
        }
    }
    assert!(named > 10, "only {named} tests named");
}
