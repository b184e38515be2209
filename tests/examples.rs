//! The examples that ship: each file is readable, and the table of `examples/README.md` names it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use barfit::host::HostFacts;

fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let entries = fs::read_dir(&directory).expect("directory of examples");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("directory entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|e| e == extension));
    files.sort();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    files
}

fn stems(files: &[PathBuf]) -> BTreeSet<String> {
    files.iter().map(|file| file.file_stem().expect("file name").to_string_lossy().into_owned()).collect()
}

/// Words in backticks of one column of the table, `-512g` being the first name of its cell with another ending.
fn named(table: &str, column: usize) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cell = row.split('|').nth(column).expect("a cell");
        let words: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        for word in &words {
            match word.strip_prefix('-') {
                Some(ending) => {
                    let (stem, _) = words[0].rsplit_once('-').expect("a first name with an ending");
                    names.insert(format!("{stem}-{ending}"));
                }
                None => {
                    names.insert((*word).to_owned());
                }
            }
        }
    }
    names
}

#[test]
fn every_host_file_is_read() {
    for file in files("examples/hosts", "json") {
        let text = fs::read_to_string(&file).expect("host file");
        if let Err(error) = HostFacts::from_json(&text) {
            panic!("{}:{error}", file.display());
        }
    }
}

#[test]
fn the_table_names_every_example_and_nothing_else() {
    let table = include_str!("../examples/README.md");
    assert_eq!(named(table, 1), stems(&files("examples", "xml")));
    assert_eq!(stems(&files("examples", "xml")), stems(&files("examples/src", "xml")));
    let mut hosts = named(table, 3);
    hosts.insert("nothing-known".to_owned());
    assert_eq!(hosts, stems(&files("examples/hosts", "json")));
}
