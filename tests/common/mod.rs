//! The examples that ship, for the tests that run over all of them.

#![allow(dead_code, reason = "each test crate uses its part")]

pub(crate) mod command;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use barfit::domain::Domain;
use barfit::guest::Source;
use barfit::host::HostFacts;
use barfit::plan::{self, Answer, Policy, Request};

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where `tests/foreign/collect` keeps the domains of other projects.
pub(crate) fn foreign() -> PathBuf {
    std::env::var_os("BARFIT_FOREIGN_CACHE").map_or_else(|| root().join(".cache/foreign"), PathBuf::from)
}

/// Files in a directory of the project by their stem.
pub(crate) fn files(directory: &str, extension: &str) -> BTreeMap<String, PathBuf> {
    let directory = root().join(directory);
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(&directory).expect("directory") {
        let path = entry.expect("directory entry").path();
        if path.extension().is_some_and(|e| e == extension) {
            files.insert(path.file_stem().expect("file name").to_string_lossy().into_owned(), path);
        }
    }
    assert!(!files.is_empty(), "{} is empty", directory.display());
    files
}

/// Name and text of every example.
pub(crate) fn examples() -> BTreeMap<String, String> {
    let read = |(name, path)| (name, fs::read_to_string(path).expect("example"));
    files("examples", "xml").into_iter().map(read).collect()
}

/// The host facts that ship.
pub(crate) fn host(name: &str) -> HostFacts {
    let path = root().join("examples/hosts").join(format!("{name}.json"));
    let text = fs::read_to_string(&path).expect("host file");
    HostFacts::from_json(&text).unwrap_or_else(|error| panic!("{}:{error}", path.display()))
}

/// The rows of the table in `examples/README.md`: names of domains, and of the hosts that go with them.
pub(crate) fn table() -> Vec<(Vec<String>, Vec<String>)> {
    let table = include_str!("../../examples/README.md");
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').collect();
        assert_eq!(cells.len(), 5, "{row}");
        (names(cells[1]), names(cells[3]))
    })
    .collect()
}

/// Words in backticks; `-512g` is the first word with another ending.
fn names(cell: &str) -> Vec<String> {
    let words: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
    let name = |word: &&str| match word.strip_prefix('-') {
        Some(ending) => {
            format!("{}-{ending}", words[0].rsplit_once('-').expect("a first word with an ending").0)
        }
        None => (*word).to_owned(),
    };
    words.iter().map(name).collect()
}

/// Every example with every host that goes with it, by name.
pub(crate) fn pairs() -> BTreeSet<(String, String)> {
    let mut pairs = BTreeSet::new();
    for (domains, hosts) in table() {
        for domain in domains {
            pairs.extend(hosts.iter().map(|host| (domain.clone(), host.clone())));
        }
    }
    pairs
}

/// What barfit says of a domain on a host.
pub(crate) fn answer(text: &str, host: &HostFacts) -> Answer {
    decide(&Domain::parse(text.as_bytes()).expect("an example"), host)
}

/// What barfit says of a domain that has been read.
pub(crate) fn decide(domain: &Domain, host: &HostFacts) -> Answer {
    plan::answer(&Request {
        domain,
        host,
        host_is: Source::HostFile,
        policy: &Policy::default(),
        firmware: None,
        assume_gpu: None,
    })
}
