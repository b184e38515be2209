//! The format `barfit/host/1`, read strictly: what is refused, where, and in which words.

use barfit::host::{HostFacts, Version};
use proptest::prelude::*;

const EXAMPLE: &str = r#"{"schema": "barfit/host/1",
 "cpu": {"vendor": "GenuineIntel", "phys_bits": 46, "pdpe1gb": true, "la57": false},
 "iommu_bits": 48, "qemu": {"version": "8.2.2"}, "libvirt": {"version": "9.0.0"},
 "firmware": [{"path": "/usr/share/OVMF/OVMF_CODE_4M.fd", "kind": "ovmf", "era": "202211", "fw_cfg_override": false},
              {"path": "/usr/share/seabios/bios-256k.bin", "kind": "seabios", "version": "1.16.2"}],
 "pci": [{"address": "0000:41:00.0", "vendor": "10de", "device": "2321", "class": "030200", "iommu_group": 12, "numa_node": 0,
          "bars": [{"index": 2, "size": "0x2000000000", "kind": "mem64-prefetchable"}]}]}"#;

#[test]
fn the_documented_example_reads_and_writes_back() {
    let facts = HostFacts::from_json(EXAMPLE).expect("the example of the format");
    assert_eq!(facts.libvirt.as_ref().and_then(|p| p.number()), Some(Version(9, 0, 0)));
    let text = facts.to_json().expect("facts are always JSON");
    assert_eq!(HostFacts::from_json(&text), Ok(facts));
}

#[test]
fn everything_but_the_schema_may_be_missing() {
    let facts = HostFacts::from_json("\u{feff}{\"schema\": \"barfit/host/1\"}").expect("only a schema");
    assert_eq!((facts.cpu, facts.iommu_bits, facts.pci.len()), (None, None, 0));
    let text = r#"{"schema": "barfit/host/1", "cpu": null, "iommu_bits": null,
        "pci": [{"address": "41:00.0", "vendor": "10DE", "device": "2321", "class": "030200", "bars": null}]}"#;
    let function = HostFacts::from_json(text).expect("null is missing").pci.remove(0);
    assert_eq!((function.bars, function.vendor.as_str()), (None, "10de"));
}

/// One function of the file, with one field spoiled.
fn function(field: &str, value: &str) -> String {
    let mut fields = vec![("address", "\"0000:41:00.0\""), ("vendor", "\"10de\""), ("device", "\"2321\"")];
    fields.push(("class", "\"030200\""));
    fields.retain(|(name, _)| *name != field);
    fields.push((field, value));
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    format!("{{\"schema\": \"barfit/host/1\",\n\"pci\": [{{{}}}]}}", fields.join(", "))
}

#[test]
fn broken_files_are_refused_with_their_place() {
    let head = r#"{"schema": "barfit/host/1", "#;
    let twice = function("bars", "[]").replace("]}]}", "]},\n{\"address\": \"41:00.0\", \"vendor\": \"10de\", \"device\": \"2321\", \"class\": \"030200\"}]}");
    let table = [
        (String::new(), "1:0: EOF while parsing a value"),
        ("{".into(), "1:1: EOF while parsing an object"),
        ("{}".into(), "1:2: missing field `schema`"),
        ("[]".into(), "1:1: host facts are an object: {\"schema\": …}, not a list"),
        (
            r#"{"schema": "barfit/host/2", "new": 1}"#.into(),
            "1:26: schema is `barfit/host/2`; this barfit reads `barfit/host/1`",
        ),
        (
            r#"{"new": 1, "schema": "barfit/host/2"}"#.into(),
            "1:37: schema is `barfit/host/2`; this barfit reads `barfit/host/1`",
        ),
        (
            format!("{head}\n \"gpus\": 4}}"),
            "2:7: unknown field `gpus`, expected one of `schema`, `cpu`, `iommu_bits`, `qemu`, `libvirt`, `firmware`, `pci`",
        ),
        (
            format!("{head}\n\"cpu\": {{\"bits\": 46}}}}"),
            "2:14: unknown field `bits`, expected one of `vendor`, `phys_bits`, `pdpe1gb`, `la57`",
        ),
        (format!("{head}\n\"cpu\": {{\"phys_bits\": 99}}}}"), "2:24: phys_bits 99 is outside 32 to 52"),
        (
            format!("{head}\n\"cpu\": {{\"phys_bits\": -1}}}}"),
            "2:23: invalid value: integer `-1`, expected u64",
        ),
        (
            format!("{head}\n\"cpu\": {{\"phys_bits\": 46.5}}}}"),
            "2:25: invalid type: floating point `46.5`, expected u64",
        ),
        (format!("{head}\n\"iommu_bits\": 300}}"), "2:18: iommu_bits 300 is outside 30 to 64"),
        (
            format!("{head}\n\"qemu\": {{\"version\": \"new\"}}}}"),
            "2:26: `new` is not a version; write it like 8.2.2",
        ),
        (
            format!("{head}\n\"firmware\": [{{\"path\": \"/x\", \"kind\": \"uboot\"}}]}}"),
            "2:43: unknown variant `uboot`, expected `ovmf` or `seabios`",
        ),
        (
            format!(
                "{head}\n\"firmware\": [{{\"path\": \"/x\", \"kind\": \"ovmf\", \"era\": \"202213\"}}]}}"
            ),
            "2:60: era `202213` is not a year and month like 202211",
        ),
        (
            function("address", "\"0000:41:20.0\""),
            "2:90: `0000:41:20.0` is not a PCI address; write it like 0000:41:00.0",
        ),
        (function("vendor", "\"0x10de\""), "2:92: `0x10de` is not 4 hex digits; write it like \"10de\""),
        (function("class", "\"0302\""), "2:88: `0302` is not 6 hex digits; write it like \"030200\""),
        (function("iommu_group", "-1"), "2:108: invalid value: integer `-1`, expected u32"),
        (
            function("bars", r#"[{"index": 9, "size": "0x1000", "kind": "mem32"}]"#),
            "2:148: BAR index 9 is outside 0 to 6",
        ),
        (
            function("bars", r#"[{"index": 1, "size": "0x1001", "kind": "mem32"}]"#),
            "2:148: size 0x1001 of BAR 1 is not a power of two",
        ),
        (
            function("bars", r#"[{"index": 1, "size": "0x0", "kind": "mem32"}]"#),
            "2:145: size 0x0 of BAR 1 is not a power of two",
        ),
        (
            function("bars", r#"[{"index": 1, "size": "128G", "kind": "mem32"}]"#),
            "2:127: `128G` is not a hexadecimal number of at most 64 bits; write it like \"0x2000000000\"",
        ),
        (
            function(
                "bars",
                r#"[{"index": 1, "size": "0x10", "kind": "mem32"}, {"index": 1, "size": "0x10", "kind": "io"}]"#,
            ),
            "2:190: BAR 1 is listed twice",
        ),
        (twice, "3:78: 0000:41:00.0 is listed twice"),
        (
            format!("{head}\"pci\": {}", "[".repeat(100_000)),
            "1:37: invalid type: sequence, expected a string",
        ),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in table {
        let shown =
            HostFacts::from_json(&text).map_or_else(|e| e.to_string(), |f| format!("accepted: {f:?}"));
        if shown != expected {
            wrong
                .push(format!("{}\n  gave     {shown}\n  expected {expected}", &text[..text.len().min(200)]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in r#"(barfit/host/1|schema|pci|bars|cpu|[0-9]{1,20}|[{}\[\]:,"\\. -]|\PC){0,60}"#) {
        let _ = HostFacts::from_json(&text);
    }

    /// Any one byte of a good file replaced: read or refused, and what is read can be written and read again.
    #[test]
    fn a_spoiled_file_is_read_or_refused(at in 0..EXAMPLE.len(), byte in 0x20u8..0x7f) {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        bytes[at] = byte;
        let text = String::from_utf8(bytes).expect("ASCII");
        if let Ok(facts) = HostFacts::from_json(&text) {
            let again = facts.to_json().expect("facts are always JSON");
            prop_assert_eq!(HostFacts::from_json(&again), Ok(facts));
        }
    }
}
