//! `docs/formats.md` names every code of findings and every field that is printed.

mod common;

use std::collections::BTreeSet;

use barfit::finding::Code;
use barfit::report::Check;
use common::{answer, examples, host, root};
use serde_json::Value;

fn page() -> String {
    std::fs::read_to_string(root().join("docs/formats.md")).expect("the page")
}

#[test]
fn every_code_has_its_line() {
    let page = page();
    let (_, table) = page.split_once("## Codes of findings").expect("the table");
    let rows: Vec<&str> =
        table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(rows, codes, "the rows are to be those of src/finding.rs, in its order");
}

#[test]
fn every_field_is_named() {
    let page = page();
    let mut fields = BTreeSet::new();
    let text = &examples()["four-h100"];
    let facts = host("xeon-46-h100");
    let domain = barfit::domain::Domain::parse(text.as_bytes()).expect("a domain");
    let check = Check::new(&domain, &answer(text, &facts)).to_text().expect("JSON");
    for json in [check, facts.to_json().expect("JSON")] {
        collect(&serde_json::from_str(&json).expect("JSON"), &mut fields);
    }
    assert!(fields.len() > 40, "{fields:?}");
    let missing: Vec<_> = fields.iter().filter(|field| !page.contains(&format!("`{field}`"))).collect();
    assert!(missing.is_empty(), "not in docs/formats.md: {missing:?}");
}

fn collect(value: &Value, fields: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(name, value)| {
            fields.insert(name.clone());
            collect(value, fields);
        }),
        Value::Array(list) => list.iter().for_each(|value| collect(value, fields)),
        _ => {}
    }
}
