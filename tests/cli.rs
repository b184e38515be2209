//! The command line's behaviour: what it reads, how it ends, and what it never prints.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::command::Barfit;
use common::{examples, pairs, root};

const FOUR: &str = "examples/four-h100.xml";

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, text).expect("a file");
    path.display().to_string()
}

/// Without changes the bytes that come out are those that went in; with them, a second time changes nothing more.
#[test]
fn rewrite_is_exact_and_idempotent() {
    for (name, host) in pairs() {
        let file = format!("examples/{name}.xml");
        let old = fs::read(root().join(&file)).expect("example");
        let changes = !common::answer(&examples()[&name], &common::host(&host)).plan.changes.is_empty();
        let quiet = |barfit: Barfit| {
            if name == "vgpu-mdev" { barfit.stderr_contains("it is not known") } else { barfit }
        };
        let new = quiet(Barfit::new(["rewrite", &file]).on(&host).any_stdout()).run();
        assert_eq!(new != old, changes, "{name} on {host}");
        let again = quiet(Barfit::new(["rewrite", "-"]).on(&host).stdin(new.clone()).any_stdout()).run();
        assert!(again == new, "{name} on {host}: twice differs from once");
        quiet(Barfit::new(["diff", "-"]).on(&host).stdin(new)).run();
    }
}

/// `barfit diff | patch -p1` makes what `barfit rewrite` prints.
#[test]
fn the_diff_is_fit_for_patch() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("vm")).expect("a directory");
    let host = root().join("examples/hosts/old-libvirt-8.0.json").display().to_string();
    let names = ["four-h100", "global-phys-bits"];
    for name in names {
        fs::copy(
            root().join(format!("examples/{name}.xml")),
            directory.path().join(format!("vm/{name}.xml")),
        )
        .expect("copied");
    }
    let files = ["vm/four-h100.xml", "vm/global-phys-bits.xml"];
    let here = |verb: &str, files: &[&str]| {
        Barfit::new([verb, "--host", &host]).args(files).directory(directory.path()).any_stdout()
    };
    let diff = here("diff", &files).status(1).text();
    let wanted: Vec<String> = files.iter().map(|file| here("rewrite", &[file]).text()).collect();
    fs::write(directory.path().join("change.diff"), diff).expect("a file");
    let patch = Command::new("patch")
        .args(["-p1", "--fuzz=0", "-i", "change.diff"])
        .current_dir(directory.path())
        .output()
        .expect("patch runs; install it: apt-get install patch");
    assert!(patch.status.success(), "{}", String::from_utf8_lossy(&patch.stdout));
    for (file, wanted) in files.iter().zip(wanted) {
        assert!(fs::read_to_string(directory.path().join(file)).expect("patched") == wanted, "{file}");
    }
}

#[test]
fn the_domain_comes_from_standard_input_once() {
    let xml = examples()["four-h100"].clone();
    let diff = Barfit::new(["diff", "-"]).on("xeon-46-h100").stdin(xml.clone()).status(1);
    diff.stdout_contains("--- a/llm-train-01.xml\n+++ b/llm-train-01.xml\n").run();
    let twice = Barfit::new(["check", "-", "-"]).stdin(xml).status(2);
    twice.stderr("barfit: `-` can be given once: there is one standard input\n").run();
}

/// `--connect` asks virsh, here one that shows how it was called.
#[test]
fn the_domain_comes_from_libvirt() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = format!(
        "#!/bin/sh\ncase $* in\n  '--connect=test:///x --quiet dumpxml --inactive --domain=-odd name') exec cat {} ;;\n\
         esac\necho \"error: failed to get domain 'x'\" >&2\necho 'error: Domain not found' >&2\nexit 1\n",
        root().join(FOUR).display()
    );
    let virsh = write(directory.path(), "virsh", &script);
    fs::set_permissions(virsh, Permissions::from_mode(0o755)).expect("executable");
    let path = format!("{}:/usr/bin:/bin", directory.path().display());
    let diff = Barfit::new([
        "diff",
        "--host",
        "examples/hosts/xeon-46-h100.json",
        "--connect",
        "test:///x",
        "--",
        "-odd name",
    ])
    .env("PATH", &path);
    // A name with a blank is followed by a tab, as patch wants it.
    let diff = diff.status(1);
    diff.stdout_contains("--- a/-odd name.xml\t\n").run();
    let missing = Barfit::new(["check", "--connect", "test:///y", "x"]).env("PATH", &path).status(2);
    missing
        .stderr("barfit: x: virsh --connect test:///y: failed to get domain 'x'; Domain not found\n")
        .run();
    let none = Barfit::new(["check", "--connect", "test:///y", "x"]).env("PATH", "/nowhere").status(2);
    none.stderr_contains("barfit: virsh: ").stderr_contains("libvirt-clients").run();
}

/// One broken domain among many: all that is wrong is said, and nothing else.
#[test]
fn nothing_is_half_printed() {
    let files = ["check", FOUR, "nowhere.xml", "examples", "Cargo.toml"];
    Barfit::new(files)
        .on("xeon-46-h100")
        .status(2)
        .stderr(
            "barfit: nowhere.xml: No such file or directory (os error 2); a domain that libvirt knows needs --connect URI\n\
             barfit: examples: Is a directory (os error 21)\n\
             barfit: Cargo.toml:1:1: this is not XML; give the output of `virsh dumpxml`\n",
        )
        .run();
    let files = ["diff", FOUR, "Cargo.toml", "README.md"];
    let diff = Barfit::new(files).on("xeon-46-h100").status(2);
    diff.stderr_contains("barfit: Cargo.toml:1:1: ").stderr_contains("barfit: README.md:1:1: ").run();
}

/// A reader that goes away has read enough.
#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_barfit"))
        .args(["catalogue", "--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("barfit runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("barfit ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// Output that cannot be written is a failure, and said.
#[test]
fn a_full_disk_is_a_failure() {
    let full = fs::File::create("/dev/full").expect("/dev/full");
    let output = Command::new(env!("CARGO_BIN_EXE_barfit"))
        .arg("catalogue")
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .expect("barfit runs");
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr, "barfit: standard output: No space left on device (os error 28)\n");
}

#[test]
fn colour_only_where_it_is_wanted() {
    let plain = |barfit: Barfit| {
        let text = barfit.on("xeon-46-h100").status(1).any_stdout().text();
        !text.contains('\u{1b}')
    };
    for verb in ["check", "diff"] {
        assert!(plain(Barfit::new([verb, FOUR])), "a pipe");
        assert!(plain(Barfit::new([verb, FOUR, "--color=never"])));
        assert!(!plain(Barfit::new([verb, FOUR, "--color=always"])));
        assert!(!plain(Barfit::new([verb, FOUR, "--color=always"]).env("NO_COLOR", "1")));
    }
    assert!(plain(Barfit::new(["check", FOUR, "--format=json", "--color=always"])));
    // Without its colours the text is the same.
    let coloured = Barfit::new(["check", FOUR, "--color=always"]).on("xeon-46-h100").status(1);
    let mut bare = String::new();
    for (at, part) in coloured.any_stdout().text().split('\u{1b}').enumerate() {
        bare.push_str(if at == 0 { part } else { part.split_once('m').expect("an escape").1 });
    }
    Barfit::new(["check", FOUR]).on("xeon-46-h100").status(1).stdout(bare).run();
}

#[test]
fn the_policy_counts() {
    let directory = tempfile::tempdir().expect("a directory");
    let policy = |name: &str, text: &str| write(directory.path(), name, text);
    let old = fs::read_to_string(root().join(FOUR)).expect("example");

    let wide = policy("wide.toml", "bits = \"host\"\n");
    let diff = Barfit::new(["diff", FOUR, "--policy", &wide]).on("xeon-46-h100").status(1);
    diff.stdout_contains("+    <maxphysaddr mode='emulate' bits='46'/>\n").run();

    // Who only observes gets the domain back as it was.
    let observe = policy("observe.toml", "mode = \"observe\"\n");
    let rewrite = Barfit::new(["rewrite", FOUR, "--policy", &observe]).on("xeon-46-h100").stdout(&old);
    rewrite.stderr("barfit: the policy's mode is observe: nothing is changed\n").run();

    // Strict and in vain: no XML, and the answer is no.
    let strict = policy("strict.toml", "mode = \"strict\"\nbits = 41\nfw_cfg = \"never\"\n");
    let rewrite = Barfit::new(["rewrite", FOUR, "--policy", &strict]).on("xeon-46-h100").status(1);
    rewrite.stderr_contains("barfit: llm-train-01: 0 of 4 GPUs get an address; ").run();

    // Enforced and in vain: the best that can be had, and a word about it.
    let narrow = policy("narrow.toml", "bits = 41\nfw_cfg = \"never\"\n");
    let rewrite = Barfit::new(["rewrite", FOUR, "--policy", &narrow]).on("xeon-46-h100");
    let rewrite = rewrite.stdout_contains("bits='41'");
    rewrite.stderr_contains("the most that can be had is 1 of 4, with 41 bits").run();
}

#[test]
fn the_firmware_counts() {
    let check =
        |firmware: &str| Barfit::new(["check", FOUR, "--firmware", firmware]).on("xeon-46-h100").status(1);
    check("seabios").stdout_contains("2 of 4 GPUs get an address").run();
    check("seabios-1.16.2").stdout_contains("with 41 bits all 4 do").run();
    check("202005").stdout_contains("with 41 bits and X-PciMmio64Mb=1048576 (1 TiB) all 4 do").run();
    check("edk2-stable202505").stdout_contains("with 43 bits all 4 do").run();
    check("/usr/share/seabios/bios-256k.bin").stdout_contains("2 of 4 GPUs get an address").run();
    for wrong in ["202213", "seabios-x", "/etc/hostname", "nowhere", "/nowhere/OVMF.fd"] {
        let check = check(wrong).status(2);
        check.stderr_contains(format!("barfit: --firmware {wrong}: neither an era like 202211")).run();
    }
}

#[test]
fn unknown_devices_can_be_named() {
    let nothing = || Barfit::new(["check", FOUR]).on("nothing-known").status(1);
    nothing().stdout_contains("it is not known whether every device gets an address").run();
    let named = nothing().args(["--assume-gpu", "h100-nvl"]);
    named.stdout_contains("with 43 bits all 4 do").stdout_contains("BARS_ASSUMED").run();
    let misspelt = nothing().args(["--assume-gpu", "h100nvl"]).status(2);
    misspelt
        .stderr_contains("barfit: invalid value 'h100nvl' for '--assume-gpu <SLUG>'")
        .stderr_contains("did you mean `h100-nvl`")
        .run();
}

/// Without --host, a machine that has none of the domain's devices says so.
#[test]
fn this_machine_is_hardly_the_hypervisor() {
    let xml = examples()["four-h100"]
        .replace("<address domain='0x0000' bus='0x", "<address domain='0xfffe' bus='0x");
    let check = Barfit::new(["check", "-", "--assume-gpu=h100-nvl"]).stdin(xml).any_status();
    check.stdout_contains("NOT_THE_HYPERVISOR").run();
}

#[test]
fn a_size_must_make_sense() {
    let size = |arguments: &[&str]| {
        let command = ["size", "--gpu", "h100-nvl", "--firmware", "202211"];
        Barfit::new(command).args(arguments).status(2)
    };
    size(&["--gpus", "0", "--ram", "64G"])
        .stderr_contains("barfit: invalid value '0' for '--gpus <N>'")
        .run();
    size(&["--gpus", "4", "--ram", "64"]).stderr_contains("512G").run();
    size(&["--gpus", "4", "--ram", "64G", "--slots", "4"]).stderr_contains("--maxmem").run();
    let less = size(&["--gpus", "4", "--ram", "64G", "--maxmem", "32G"]);
    less.stderr("barfit: --maxmem 32 GiB is less than --ram 64 GiB\n").run();
}

#[test]
fn help_version_and_what_is_generated() {
    Barfit::new(["--version"]).stdout(format!("barfit {}\n", env!("CARGO_PKG_VERSION"))).run();
    Barfit::new(["--help"]).stdout_contains("Usage: barfit [OPTIONS] <COMMAND>").run();
    for shell in ["bash", "zsh", "fish"] {
        Barfit::new(["completions", shell]).stdout_contains("barfit").run();
    }
    Barfit::new(["man"]).stdout_contains(".TH barfit 1").run();
    Barfit::new(["man", "check"]).stdout_contains(".TH barfit-check 1").run();
    let none = Barfit::new(["man", "chekc"]).status(2);
    none.stderr("barfit: man: there is no verb `chekc`; `barfit --help` lists them\n").run();
    Barfit::new(["catalogue", "no-such-gpu"]).status(1).any_stdout().run();
}
