//! What people and programs see: one snapshot for each example on each of its hosts, with the whole of `check` and
//! the diff; JSON for a few; tables of `size`.

mod common;

use std::fmt::Write as _;

use common::command::Barfit;
use common::{answer, examples, host, pairs, root};

macro_rules! snapshot {
    ($folder:literal, $name:expr, $text:expr) => {
        insta::with_settings!({
            snapshot_path => root().join("snapshots").join($folder),
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, { insta::assert_snapshot!($name, $text) })
    };
}

/// `check` and `diff` of every example; what they say with their exit status must agree with each other.
#[test]
fn every_example_on_every_host() {
    let examples = examples();
    for (name, host_name) in pairs() {
        let file = format!("examples/{name}.xml");
        let answer = answer(&examples[&name], &host(&host_name));
        let fits =
            matches!(answer.verdict, barfit::plan::Verdict::Fits | barfit::plan::Verdict::NoPassthrough);
        let changes = !answer.plan.changes.is_empty();
        let check = Barfit::new(["check", &file]).on(&host_name).status(i32::from(!fits)).any_stdout().text();
        let diff = Barfit::new(["diff", &file]).on(&host_name).status(i32::from(changes)).any_stdout();
        let diff = if answer.plan.verdict == barfit::plan::Verdict::Unknown {
            diff.stderr_contains("it is not known").text()
        } else {
            diff.text()
        };
        // The answer itself is one line, for those who search for it.
        for line in check.lines().skip(1) {
            assert!(line.chars().count() <= 100 && line.trim_end() == line, "{name}: {line:?}");
        }
        let diff = if diff.is_empty() { "(no diff)\n".to_owned() } else { diff };
        let shown = format!("$ barfit check {file}, {host_name}\n{check}\n$ barfit diff\n{diff}");
        snapshot!("check", format!("{name}@{host_name}"), shown);
    }
}

/// The reference case as an operator goes through it.
#[test]
fn before_and_after() {
    let before = Barfit::new(["check", "examples/four-h100.xml"]).on("xeon-46-h100").status(1);
    before.stdout_contains("0 of 4 GPUs get an address; with 43 bits all 4 do.").run();
    let new = Barfit::new(["rewrite", "examples/four-h100.xml"]).on("xeon-46-h100").any_stdout().run();
    let after = Barfit::new(["check", "-"]).on("xeon-46-h100").stdin(new);
    after.stdout_contains("all 4 GPUs get an address; nothing needs to change.").run();
}

#[test]
fn both_pictures_when_asked_for() {
    let check = Barfit::new(["check", "-v", "examples/bios-four-h100-512g.xml"]).on("xeon-46-h100").status(1);
    snapshot!("check", "verbose", check.any_stdout().text());
}

#[test]
fn many_domains() {
    let mut files: Vec<String> = examples().into_keys().map(|name| format!("examples/{name}.xml")).collect();
    files.insert(0, "check".to_owned());
    let summary = Barfit::new(&files).on("xeon-46-h100").status(1).any_stdout().text();
    snapshot!("check", "many", summary);
}

#[test]
fn json() {
    for (name, host, status) in [
        ("four-h100", "xeon-46-h100", 1),
        ("bios-four-h100-768g", "xeon-46-h100", 1),
        ("epyc-1tib", "epyc-48-mi300x", 1),
        ("fw-cfg-short", "xeon-46-h100-debian13", 1),
        ("vgpu-mdev", "xeon-46-h100", 1),
        ("plain", "xeon-46-h100", 0),
        ("bits-right", "xeon-46-h100", 0),
    ] {
        let file = format!("examples/{name}.xml");
        let check = Barfit::new(["check", "--format", "json", &file]).on(host).status(status).any_stdout();
        snapshot!("json", format!("{name}@{host}"), check.text());
    }
}

/// Several domains are one object a line, so that one `jq` filter serves one domain and many.
#[test]
fn json_lines() {
    let files = ["check", "--format=json", "examples/plain.xml", "examples/four-h100.xml"];
    let text = Barfit::new(files).on("xeon-46-h100").status(1).any_stdout().text();
    let verdicts: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("an object a line"))
        .map(|object| object["verdict"].as_str().expect("a verdict").to_owned())
        .collect();
    assert_eq!(verdicts, ["no-passthrough", "does-not-fit"]);
}

/// Hand-written domains give the same answer as what libvirt makes of them: the tables of `size`.
#[test]
fn size_tables() {
    let mut shown = String::new();
    let mut row = |arguments: &[&str]| {
        let command = ["size", "--format", "json"].iter().chain(arguments);
        let text = Barfit::new(command).any_stdout().any_status().text();
        let answer: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let plan = &answer["plan"];
        writeln!(
            shown,
            "{}: {} {} of {} -> {} {} at {}{}",
            arguments.join(" "),
            answer["verdict"].as_str().unwrap_or_default(),
            answer["gpus"]["placed"],
            answer["gpus"]["total"],
            plan["result"]["verdict"].as_str().unwrap_or_default(),
            plan["result"]["gpus"]["placed"],
            plan["phys_bits"],
            plan["mmio64_mib"].as_u64().map(|mib| format!(", X-PciMmio64Mb {mib}")).unwrap_or_default()
        )
        .expect("a string");
    };
    for firmware in ["202211", "202505", "seabios-1.16.2", "seabios-1.17.0"] {
        for gpus in 1..=8 {
            row(&["--firmware", firmware, "--gpu", "h100-nvl", "--ram", "512G", "--gpus", &gpus.to_string()]);
        }
        for ram in ["128G", "256G", "512G", "768G", "1T", "1536G", "1920G"] {
            row(&["--firmware", firmware, "--gpu", "h100-nvl", "--gpus", "4", "--ram", ram]);
        }
    }
    for vendor in ["intel", "amd"] {
        for ram in ["900G", "1000G", "1012G", "1020G", "1T", "1920G"] {
            row(&["--firmware=202211", "--gpu=mi300x", "--gpus=8", "--cpu-vendor", vendor, "--ram", ram]);
        }
    }
    row(&["--firmware", "202211", "--gpu", "h100-nvl", "--gpus", "4", "--ram", "512G", "--maxmem", "4T"]);
    row(&[
        "--firmware",
        "202211",
        "--gpu",
        "v100-pcie-16g",
        "--gpus",
        "4",
        "--ram",
        "64G",
        "--machine",
        "pc",
    ]);
    snapshot!("size", "tables", shown);
}

#[test]
fn size_for_people() {
    let size = ["size", "--gpus", "8", "--gpu", "mi300x", "--ram", "1920G", "--firmware", "202211"];
    snapshot!("size", "mi300x", Barfit::new(size).any_stdout().text());
    let size = ["size", "--gpus", "2", "--gpu", "h100-nvl", "--ram", "64G"];
    snapshot!(
        "size",
        "on_a_host",
        Barfit::new(size).on("core-46-iommu-39-rtx4090").status(1).any_stdout().text()
    );
}

#[test]
fn host_and_catalogue() {
    let host = Barfit::new(["host", "--format", "human"]).on("xeon-46-h100").any_stdout().text();
    snapshot!("host", "human", host);
    let nothing = Barfit::new(["host", "--format", "human"]).on("nothing-known").any_stdout().text();
    snapshot!("host", "human_nothing_known", nothing);
    snapshot!("catalogue", "one", Barfit::new(["catalogue", "h100-nvl"]).any_stdout().text());
    snapshot!("catalogue", "some", Barfit::new(["catalogue", "mi3"]).any_stdout().text());
    let json = Barfit::new(["catalogue", "h100-nvl", "--format", "json"]).any_stdout().text();
    snapshot!("catalogue", "json", json);
}

/// What `host` prints is what `--host` reads.
#[test]
fn host_reads_itself_back() {
    let json = Barfit::new(["host"]).on("xeon-46-h100").any_stdout().text();
    assert_eq!(barfit::host::HostFacts::from_json(&json), Ok(host("xeon-46-h100")));
}
