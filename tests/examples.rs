//! The examples that ship: each file is readable, the table of `examples/README.md` names it, and one snapshot shows
//! what barfit makes of each domain on each host.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use barfit::domain::Domain;
use barfit::host::HostFacts;
use barfit::rewrite::rewrite;
use common::{answer, examples, files, host, pairs, root, table};

fn stems<T>(files: &BTreeMap<String, T>) -> BTreeSet<String> {
    files.keys().cloned().collect()
}

#[test]
fn every_host_file_is_read() {
    for name in files("examples/hosts", "json").keys() {
        assert_ne!(host(name), HostFacts::default());
    }
}

#[test]
fn every_domain_is_read() {
    for directory in ["examples", "examples/src", "examples/live"] {
        for path in files(directory, "xml").values() {
            let text = std::fs::read(path).expect("example");
            if let Err(error) = Domain::parse(&text) {
                panic!("{}:{error}", path.display());
            }
        }
    }
}

#[test]
fn the_table_names_every_example_and_nothing_else() {
    let named: BTreeSet<String> = table().into_iter().flat_map(|(domains, _)| domains).collect();
    assert_eq!(named, stems(&examples()));
    assert_eq!(named, stems(&files("examples/src", "xml")));
    let mut hosts: BTreeSet<String> = table().into_iter().flat_map(|(_, hosts)| hosts).collect();
    hosts.insert("nothing-known".to_owned());
    assert_eq!(hosts, stems(&files("examples/hosts", "json")));
}

/// One line for each domain and host: the verdict, the GPUs placed, and what the plan makes of it. Every plan that
/// changes something is made, and must leave nothing to change.
#[test]
fn what_barfit_makes_of_each() {
    let examples = examples();
    let mut shown = String::new();
    for (name, host_name) in pairs() {
        let (text, host) = (&examples[&name], host(&host_name));
        let before = answer(text, &host);
        let total = before.assembled.gpus();
        let placed = before.gpus_placed(before.present.as_ref());
        write!(shown, "{name} on {host_name}: {:?}, {placed} of {total} GPUs", before.verdict)
            .expect("a string");
        let changes = &before.plan.changes;
        if !changes.is_empty() {
            let placed = before.gpus_placed(before.plan.layout.as_ref());
            write!(shown, " -> {:?}, {placed} of {total} by {changes:?}", before.plan.verdict)
                .expect("a string");
            let changed = rewrite(text.as_bytes(), changes).expect("a plan for this domain");
            let after = answer(&String::from_utf8(changed).expect("UTF-8"), &host);
            assert_eq!(after.verdict, before.plan.verdict, "{name} on {host_name}");
            assert_eq!(after.plan.changes, [], "{name} on {host_name}: not done in one go");
        }
        let mut codes: Vec<_> = before.findings.iter().map(|finding| finding.code.to_string()).collect();
        codes.sort();
        codes.dedup();
        writeln!(shown, " [{}]", codes.join(" ")).expect("a string");
    }
    insta::with_settings!({
        snapshot_path => root().join("snapshots"),
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, { insta::assert_snapshot!("examples", shown) });
}
