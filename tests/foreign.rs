//! Domains that other projects wrote (`tests/foreign/collect`): each is read or refused in clear words; without
//! passed-through devices it comes out as it went in; with GPUs put in, what comes out is still valid by libvirt's
//! schema, and holds what the plan promised.

mod common;
#[allow(dead_code, reason = "the fuzz targets take the rest")]
mod properties;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use barfit::domain::Domain;
use barfit::host::HostFacts;
use barfit::plan::{Policy, Request, Verdict, answer};
use barfit::rewrite::rewrite;
use properties::promise::{Case, holds};
use roxmltree::Node;

const SCHEMA: &str = "/usr/share/libvirt/schemas/domain.rng";
/// Fewer documents than this, and collecting went wrong.
const FEWEST: usize = 2500;

/// Every document that was collected, by path.
fn documents() -> BTreeMap<PathBuf, Vec<u8>> {
    let cache = common::foreign();
    let folders = fs::read_dir(&cache)
        .unwrap_or_else(|error| panic!("{}: {error}; run tests/foreign/collect", cache.display()));
    let folders = folders.map(|folder| folder.expect("an entry").path());
    let mut documents = BTreeMap::new();
    for folder in folders.filter(|path| path.is_dir() && !path.ends_with(".apt")) {
        for file in fs::read_dir(&folder).expect("a folder") {
            let path = file.expect("an entry").path();
            let bytes = fs::read(&path).expect("a document");
            documents.insert(path, bytes);
        }
    }
    assert!(documents.len() >= FEWEST, "{} documents only; run tests/foreign/collect", documents.len());
    documents
}

fn host() -> HostFacts {
    let text = include_str!("../examples/hosts/xeon-46-h100.json");
    HostFacts::from_json(text).expect("a host that ships")
}

/// A host whose GPUs have BARs of 512 GiB: four of them are too much for any guest as its author left it.
fn bigger_host() -> HostFacts {
    let text = include_str!("../examples/hosts/xeon-46-b300.json");
    HostFacts::from_json(text).expect("a host that ships")
}

/// Whether anything in a domain may be a device of the host, told without barfit's own reader.
fn may_pass_through(document: &roxmltree::Document<'_>) -> bool {
    document.descendants().any(|node| {
        let kind = node.attribute("type");
        node.has_tag_name("hostdev")
            || node.has_tag_name("interface") && matches!(kind, Some("hostdev" | "network"))
            || node.attribute("value").is_some_and(|word| word.contains("vfio"))
    })
}

#[test]
fn every_document_is_read_or_refused() {
    let host = host();
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    let mut reasons: BTreeMap<String, (usize, PathBuf)> = BTreeMap::new();
    for (path, bytes) in documents() {
        // The properties that fuzzing holds: a refusal is clear, a promise is kept, no byte changes outside an edit.
        let named = Named(&path);
        let verdict = holds(&bytes, &Case::on(&host));
        std::mem::forget(named);
        let outcome = verdict.map_or("refused".to_owned(), |verdict| format!("{verdict:?}"));
        *told.entry(outcome).or_default() += 1;
        if verdict.is_none() {
            let error = Domain::parse(&bytes).expect_err("refused").message;
            let quoted = error.split('`').enumerate().map(|(at, part)| if at % 2 == 1 { "…" } else { part });
            reasons.entry(quoted.collect()).or_insert((0, path.clone())).0 += 1;
        }
        let text = String::from_utf8_lossy(&bytes);
        let Ok(document) = roxmltree::Document::parse(&text) else { continue };
        if !may_pass_through(&document) && verdict.is_some() {
            assert_eq!(verdict, Some(Verdict::NoPassthrough), "{} has no device of the host", path.display());
        }
    }
    eprintln!("{told:?}");
    for (reason, (count, path)) in reasons {
        eprintln!("{count:4} {reason} ({})", path.display());
    }
}

/// Names a file when a property does not hold for it.
struct Named<'a>(&'a Path);

#[allow(clippy::print_stderr, reason = "said only when a property fails")]
impl Drop for Named<'_> {
    fn drop(&mut self) {
        eprintln!("in {}", self.0.display());
    }
}

/// Four GPUs of [`bigger_host`], put at the end of `<devices>`.
fn with_gpus(text: &str) -> Option<String> {
    let document = roxmltree::Document::parse(text).ok()?;
    let is_devices = |node: &Node<'_, '_>| node.has_tag_name("devices");
    let devices = document.root_element().children().find(is_devices)?;
    let end = devices.last_child()?.range().end;
    let gpus = ["0x17", "0x3d", "0x60", "0x70"].map(|bus| {
        format!(
            "<hostdev mode='subsystem' type='pci' managed='yes'><source>\
             <address domain='0x0000' bus='{bus}' slot='0x00' function='0x0'/></source></hostdev>"
        )
    });
    Some(format!("{}{}{}", &text[..end], gpus.concat(), &text[end..]))
}

/// Which of the files are valid by libvirt's schema.
fn valid(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut valid = BTreeSet::new();
    for files in files.chunks(500) {
        let output = Command::new("xmllint")
            .args(["--noout", "--relaxng", SCHEMA])
            .args(files)
            .stdin(Stdio::null())
            .output()
            .expect("xmllint, of Debian's libxml2-utils; run tests/install-programs");
        let said = String::from_utf8_lossy(&output.stderr);
        let named: Vec<&str> = said.lines().filter_map(|line| line.strip_suffix(" validates")).collect();
        assert!(!named.is_empty() || said.contains("fails to validate"), "{SCHEMA} cannot be used: {said}");
        valid.extend(named.into_iter().map(PathBuf::from));
    }
    valid
}

#[test]
fn with_gpus_put_in_the_output_is_valid() {
    let folder = tempfile::tempdir().expect("a folder");
    let host = bigger_host();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    for (number, (path, bytes)) in documents().into_iter().enumerate() {
        let Some(text) = std::str::from_utf8(&bytes).ok().and_then(with_gpus) else { continue };
        let named = Named(&path);
        let verdict = holds(text.as_bytes(), &Case::on(&host));
        let Some(verdict) = verdict else {
            std::mem::forget(named);
            continue;
        };
        *told.entry(format!("{verdict:?}")).or_default() += 1;
        let domain = Domain::parse(text.as_bytes()).expect("it held");
        let policy = Policy::default();
        let case = Case::on(&host);
        let answer = answer(&Request {
            domain: &domain,
            host: &host,
            host_is: barfit::guest::Source::HostFile,
            policy: &policy,
            firmware: case.firmware.as_ref(),
            assume_gpu: None,
        });
        assert_ne!(verdict, Verdict::NoPassthrough, "{} has four GPUs", path.display());
        std::mem::forget(named);
        if answer.plan.changes.is_empty() {
            continue;
        }
        let new = rewrite(text.as_bytes(), &answer.plan.changes).expect("a plan can be carried out");
        let name = path.file_name().expect("a file").to_string_lossy();
        let (old_path, new_path) = (
            folder.path().join(format!("{number}-old-{name}")),
            folder.path().join(format!("{number}-new-{name}")),
        );
        fs::write(&old_path, &text).expect("written");
        fs::write(&new_path, new).expect("written");
        before.push(old_path);
        after.push(new_path);
    }
    let (valid_before, valid_after) = (valid(&before), valid(&after));
    let mut broken = Vec::new();
    for (old, new) in before.iter().zip(&after) {
        if valid_before.contains(old) && !valid_after.contains(new) {
            broken.push(new.file_name().expect("a file").to_string_lossy().into_owned());
        }
    }
    eprintln!(
        "{told:?}; {} changed, {} of them valid before, {} after",
        before.len(),
        valid_before.len(),
        valid_after.len()
    );
    assert!(broken.is_empty(), "valid before, and no more: {broken:#?}");
    assert!(valid_before.len() > 500, "{} documents are valid with GPUs", valid_before.len());
}
