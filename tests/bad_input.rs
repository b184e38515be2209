//! Input that is no input: exit status 2, one line `barfit: FILE:LINE:COL: …` on standard error, nothing on standard
//! output, in little memory.

mod common;

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use common::command::Barfit;
use common::{examples, root};

/// Address space of a barfit that reads bad input, in MiB. It starts with some 10.
const MEMORY: u64 = 200;

/// Runs every verb that reads a domain on a file; gives what is said of it, the same for all of them.
fn said_of(file: &Path) -> String {
    let mut said: Option<String> = None;
    for verb in ["check", "diff", "rewrite"] {
        let barfit = Barfit::in_memory_of(MEMORY).args([verb]).args([file]).on("xeon-46-h100").status(2);
        let text = barfit.failure();
        assert!(said.get_or_insert_with(|| text.clone()) == &text, "{verb}: {text}");
    }
    let text = said.expect("verbs");
    let rest = text.strip_prefix(&format!("barfit: {}:", file.display())).expect("the file's name first");
    let mut parts = rest.splitn(3, ':');
    for what in ["line", "column"] {
        let number = parts.next().and_then(|part| part.parse::<u32>().ok());
        assert!(number.is_some_and(|number| number > 0), "no {what}: {text}");
    }
    assert!(text.ends_with('\n') && text.lines().count() == 1 && text.len() < 400, "{text}");
    rest.to_owned()
}

#[test]
fn domains() {
    let directory = tempfile::tempdir().expect("a directory");
    let four = examples()["four-h100"].clone();
    let with = |old: &str, new: &str| {
        assert!(four.contains(old), "{old}");
        four.replacen(old, new, 1).into_bytes()
    };
    let deep = |levels: usize| [b"<domain>".to_vec(), b"<a>".repeat(levels), b"</a>".repeat(levels)].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("not-xml", b"error: failed to get domain 'x'\n".to_vec()),
        ("json", b"{\"schema\": \"barfit/host/1\"}\n".to_vec()),
        ("elf", b"\x7fELF\x02\x01\x01\x00\x00\n\x03\x00\x3e\x00\xe8\xff".to_vec()),
        ("not-a-domain", b"<network>\n  <name>x</name>\n</network>\n".to_vec()),
        ("truncated", four.as_bytes()[..four.len() / 2].to_vec()),
        ("doctype", with("<domain", "<!DOCTYPE domain [<!ENTITY a 'b'>]>\n<domain")),
        ("entity-bomb", with("<domain", "<!DOCTYPE d [<!ENTITY a 'aa'><!ENTITY b '&a;&a;'>]>\n<domain")),
        ("deep", deep(100_000)),
        ("deep-and-open", b"<domain>".repeat(100_000)),
        ("latin-1", [b"<domain>\n<name>caf\xe9</name>".as_slice(), b"</domain>"].concat()),
        ("utf-16", "<domain/>".encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("one-eib", with("<memory unit='KiB'>536870912</memory>", "<memory unit='EiB'>1</memory>")),
        ("negative", with("<memory unit='KiB'>536870912</memory>", "<memory>-1</memory>")),
        ("bits-999", with("<topology", "<maxphysaddr mode='emulate' bits='999'/>\n<topology")),
        (
            "bits-huge",
            with("<topology", "<maxphysaddr mode='emulate' bits='99999999999999999999'/><topology"),
        ),
        ("no-memory", with("<memory unit='KiB'>536870912</memory>", "")),
        (
            "attributes",
            format!("<domain{}/>", (0..5000).map(|i| format!(" a{i}=''")).collect::<String>()).into(),
        ),
        ("too-large", with("</domain>", &format!("<!--{}--></domain>", "x".repeat(17 << 20)))),
    ];
    let mut said = String::new();
    for (name, bytes) in cases {
        let file = directory.path().join(name);
        fs::write(&file, bytes).expect("a file");
        said.push_str(&format!("{name}\n    {}", said_of(&file)));
    }
    insta::with_settings!({
        snapshot_path => root().join("snapshots/bad_input"),
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, { insta::assert_snapshot!("domains", said) });
}

/// 200 MiB, as a file of blanks and as one of zeros, and from a pipe: read to a bound and no further.
#[test]
fn huge() {
    let directory = tempfile::tempdir().expect("a directory");
    let zeros = directory.path().join("zeros");
    fs::File::create(&zeros).and_then(|file| file.set_len(200 << 20)).expect("a sparse file");
    assert!(said_of(&zeros).starts_with("1:1: this is larger than 16 MiB"));
    let domain = directory.path().join("domain");
    let mut file = fs::File::create(&domain).expect("a file");
    file.write_all(b"<domain><!--").expect("written");
    file.seek(SeekFrom::Start(200 << 20)).expect("a hole");
    file.write_all(b"--></domain>").expect("written");
    assert!(said_of(&domain).starts_with("1:1: this is larger than 16 MiB"));
    let pipe = Barfit::in_memory_of(MEMORY).args(["check", "-"]).stdin(vec![b' '; 200 << 20]).status(2);
    assert!(pipe.failure().starts_with("barfit: <stdin>:1:1: this is larger than 16 MiB"));
    let endless = Barfit::in_memory_of(MEMORY).args(["check", "/dev/zero"]).status(2);
    assert!(endless.failure().starts_with("barfit: /dev/zero:1:1: this is larger than 16 MiB"));
    let host = Barfit::in_memory_of(MEMORY).args(["check", "examples/plain.xml", "--host"]).args([&zeros]);
    assert!(host.status(2).failure().contains("zeros:1:1: this is larger than 16 MiB"));
}

/// Files beside the domain.
#[test]
fn host_files_and_policies() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().display().to_string();
    let host = |text: &[u8]| ("--host", text.to_vec());
    let policy = |text: &[u8]| ("--policy", text.to_vec());
    let cases = [
        ("host-truncated", host(b"{\"schema\": \"barfit/host/1\",\n \"cpu\": {")),
        ("host-not-json", host(b"<domain/>\n")),
        ("host-a-list", host(b"[]\n")),
        ("host-schema", host(b"{\"schema\": \"barfit/host/9\"}")),
        ("host-without-schema", host(b"{}")),
        ("host-unknown-key", host(b"{\"schema\": \"barfit/host/1\",\n \"cpus\": 2}")),
        ("host-width", host(b"{\"schema\": \"barfit/host/1\",\n \"cpu\": {\"phys_bits\": 99}}")),
        ("host-not-utf-8", host(b"{\"schema\":\n \"\xff\"}")),
        ("policy-unknown-key", policy(b"mode = \"strict\"\nbit = 44\n")),
        ("policy-width", policy(b"bits = 99\n")),
        ("policy-mode", policy(b"mode = \"enforced\"\n")),
        ("policy-not-toml", policy(b"\n<policy/>\n")),
        ("policy-not-utf-8", policy(b"mode = \"\xff\"\n")),
    ];
    let mut said = String::new();
    for (name, (option, bytes)) in cases {
        let file = directory.path().join(name);
        fs::write(&file, bytes).expect("a file");
        let barfit = Barfit::in_memory_of(MEMORY).args(["check", "examples/plain.xml", option]).args([&file]);
        let text = barfit.status(2).failure();
        said.push_str(&format!("{name}\n    {}", text.replace(&path, "")));
    }
    let missing = directory.path().join("missing");
    for option in ["--host", "--policy"] {
        for file in [missing.as_path(), directory.path()] {
            let barfit = Barfit::new(["check", "examples/plain.xml", option]).args([file]).status(2);
            said.push_str(&format!("{option}\n    {}", barfit.failure().replace(&path, "DIRECTORY")));
        }
    }
    insta::with_settings!({
        snapshot_path => root().join("snapshots/bad_input"),
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, { insta::assert_snapshot!("files", said) });
}

#[test]
fn command_lines() {
    // Without a verb: what there is, which is another test's matter.
    assert!(Barfit::new([""; 0]).status(2).failure().starts_with("barfit: a verb is missing\n"));
    let lines: [&[&str]; 8] = [
        &["chek"],
        &["check"],
        &["check", "--hots", "x", "y"],
        &["check", "--format", "xml", "y"],
        &["check", "--assume-gpu", "h100", "y"],
        &["size", "--gpus", "4", "--gpu", "zzz", "--ram", "1G"],
        &["rewrite", "a", "b"],
        &["completions", "cmd"],
    ];
    let mut said = String::new();
    for line in lines {
        said.push_str(&format!("$ barfit {}\n{}\n", line.join(" "), Barfit::new(line).status(2).failure()));
    }
    insta::with_settings!({
        snapshot_path => root().join("snapshots/bad_input"),
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, { insta::assert_snapshot!("command_lines", said) });
}
