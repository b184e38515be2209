//! Every transformation of a domain XML, one snapshot each: the input, the changes asked for, the diff.
//!
//! Beside what the snapshot shows, each transformation is held to what must be true of all of them.

use std::fs;
use std::path::PathBuf;

use barfit::domain::{Document, Domain, FeaturePolicy, MaxPhysAddrMode};
use barfit::plan::{Change, CpuGlobal, MaxPhysAddrValue};
use barfit::rewrite::{diff, rewrite};
use barfit::units::PhysBits;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn bits(bits: u64) -> PhysBits {
    PhysBits::new(bits).expect("32 to 52")
}

fn emulate(width: u64) -> Change {
    Change::SetMaxPhysAddr(MaxPhysAddrValue::Emulate(bits(width)))
}

fn passthrough(limit: Option<u64>) -> Change {
    Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { limit: limit.map(bits) })
}

fn global(width: u64) -> Change {
    Change::SetCpuGlobal(CpuGlobal::PhysBits(bits(width)))
}

const PDPE1GB: Change = Change::RequireFeature("pdpe1gb");
const MMIO64: Change = Change::SetMmio64Mib(2_097_152);

/// Fixtures that make no guest, in libvirt or in QEMU: too little in them, or an option without its value.
const NO_GUEST: [&str; 3] = ["self-closed", "empty-domain", "fwcfg-without-value"];

/// Rewrites a fixture, checks what holds for every transformation, and shows the diff.
fn transform(fixture: &str, changes: &[Change]) -> String {
    let path = root().join("tests/fixtures/xml").join(fixture).with_extension("xml");
    let old = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let new = rewrite(&old, changes).expect(fixture);
    Document::parse(&new).expect("the result parses");
    if !NO_GUEST.contains(&fixture) {
        let view = Domain::parse(&new).expect("the result is a domain");
        for change in changes {
            assert!(shows(&view, change), "{fixture}: {change:?} does not show in {view:?}");
        }
    }
    assert_eq!(rewrite(&new, changes).as_ref(), Ok(&new), "{fixture}: twice differs from once");
    assert_eq!(rewrite(&new, &[]).as_ref(), Ok(&new));
    let diff = diff::unified(&format!("{fixture}.xml"), &old, &new);
    let diff = String::from_utf8(diff).expect("fixtures are UTF-8");
    let shown = if diff.is_empty() { "(no change)\n".to_owned() } else { visible(&diff) };
    format!("{fixture}.xml {changes:?}\n\n{shown}")
}

/// Whether a change can be seen in what the domain means.
fn shows(domain: &Domain, change: &Change) -> bool {
    let line = &domain.command_line;
    match change {
        Change::SetMaxPhysAddr(value) => {
            let bits = |bits: &PhysBits| u64::from(bits.get());
            let expected = match value {
                MaxPhysAddrValue::Emulate(width) => (MaxPhysAddrMode::Emulate, Some(bits(width)), None),
                MaxPhysAddrValue::Passthrough { limit } => {
                    (MaxPhysAddrMode::Passthrough, None, limit.as_ref().map(bits))
                }
            };
            let found = domain.cpu.as_ref().and_then(|cpu| cpu.maxphysaddr);
            found.is_some_and(|found| (found.mode, found.bits, found.limit) == expected)
        }
        Change::RequireFeature(name) => domain.cpu.as_ref().is_some_and(|cpu| {
            let mut policies = cpu.features.iter().filter(|(feature, _)| feature == name).peekable();
            policies.peek().is_some() && policies.all(|(_, policy)| *policy == FeaturePolicy::Require)
        }),
        Change::SetMmio64Mib(mib) => {
            let value = line.mmio64.as_ref().and_then(|entry| entry.value.clone());
            value == Some(mib.to_string())
        }
        Change::RemoveMmio64 => line.mmio64.is_none(),
        Change::SetCpuGlobal(_) if line.cpu.replaced.is_some() => true,
        Change::SetCpuGlobal(CpuGlobal::PhysBits(bits)) => line.cpu.phys_bits == Some(bits.get().into()),
        Change::SetCpuGlobal(CpuGlobal::HostPhysBits) => line.cpu.host_phys_bits == Some(true),
        Change::SetCpuGlobal(CpuGlobal::HostPhysBitsLimit(bits)) => {
            line.cpu.host_phys_bits_limit == Some(bits.get().into())
        }
    }
}

/// Characters that a snapshot would not show.
fn visible(text: &str) -> String {
    text.replace('\r', "␍").replace('\t', "⇥").replace('\u{feff}', "[BOM]")
}

macro_rules! transformations {
    ($($name:ident: $fixture:literal, $changes:expr;)+) => {
        $(#[test]
        fn $name() {
            let shown = transform($fixture, &$changes);
            insta::with_settings!({
                snapshot_path => root().join("snapshots/rewrite"),
                prepend_module_to_snapshot => false,
                omit_expression => true,
            }, { insta::assert_snapshot!(stringify!($name), shown) });
        })+
    };
}

transformations! {
    // `<maxphysaddr>`: where it goes, and in what style.
    bits_for_a_named_model: "named-model", [emulate(43)];
    bits_in_a_self_closed_cpu: "cpu-self-closed", [emulate(43)];
    bits_in_a_self_closed_cpu_with_blanks: "cpu-self-closed-blanks", [emulate(43)];
    bits_without_cpu: "cpu-missing", [emulate(43)];
    bits_in_an_empty_cpu: "cpu-empty", [emulate(43)];
    bits_in_a_blank_cpu: "cpu-blank", [emulate(43)];
    bits_after_comments_only: "cpu-comments-only", [emulate(43)];
    bits_without_model: "cpu-without-model", [emulate(43)];
    bits_before_features: "cpu-features-only", [passthrough(None)];
    bits_beside_text: "cpu-with-text", [emulate(43)];
    bits_in_crlf: "crlf", [emulate(43)];
    bits_after_a_byte_order_mark: "byte-order-mark", [emulate(43)];
    bits_among_tabs: "tabs", [emulate(43)];
    bits_among_four_spaces: "four-spaces", [emulate(43)];
    bits_minified: "minified", [emulate(43)];
    bits_minified_without_cpu: "minified-bare", [emulate(43)];
    bits_in_one_line: "one-line", [emulate(43), PDPE1GB];
    bits_in_a_self_closed_domain: "self-closed", [emulate(43)];
    bits_in_an_empty_domain: "empty-domain", [emulate(43), MMIO64];
    bits_among_odd_tags: "odd-tags", [emulate(43), PDPE1GB];
    bits_among_comments: "comments", [emulate(43), PDPE1GB];
    bits_beside_cdata: "cdata", [emulate(43)];
    bits_with_cpus_elsewhere: "cpu-elsewhere", [emulate(43)];
    bits_in_an_order_of_hand: "order-of-hand", [emulate(43)];

    // `<maxphysaddr>` that is there.
    bits_already_right: "maxphysaddr-right", [emulate(43)];
    bits_corrected: "maxphysaddr-small", [emulate(43)];
    bits_to_passthrough: "maxphysaddr-small", [passthrough(None)];
    bits_to_passthrough_with_limit: "maxphysaddr-small", [passthrough(Some(46))];
    limit_corrected: "maxphysaddr-limit", [passthrough(Some(43))];
    limit_removed: "maxphysaddr-limit", [passthrough(None)];
    limit_to_bits: "maxphysaddr-limit", [emulate(43)];
    first_of_two_counts: "maxphysaddr-twice", [emulate(43)];
    mode_missing: "maxphysaddr-without-mode", [emulate(43)];

    // Features.
    feature_for_a_named_model: "named-model", [PDPE1GB];
    feature_with_bits: "named-model", [emulate(43), PDPE1GB];
    feature_in_a_self_closed_cpu: "cpu-self-closed", [PDPE1GB, emulate(43)];
    feature_was_disabled: "feature-disabled", [emulate(43), PDPE1GB];
    feature_required_already: "feature-without-policy", [PDPE1GB];
    feature_without_cpu: "cpu-missing", [emulate(43), PDPE1GB];
    feature_without_model: "cpu-without-model", [PDPE1GB];

    // OVMF's window.
    window_in_a_new_block: "named-model", [MMIO64];
    window_in_a_new_block_in_crlf: "crlf-new-block", [emulate(46), MMIO64];
    window_in_a_new_block_minified: "minified", [MMIO64];
    window_in_a_self_closed_domain: "self-closed", [MMIO64];
    window_in_a_self_closed_block: "block-self-closed", [MMIO64];
    window_before_environment: "block-env-only", [MMIO64];
    window_without_final_newline: "no-final-newline", [MMIO64];
    window_corrected: "fwcfg", [MMIO64];
    window_already_right: "fwcfg", [Change::SetMmio64Mib(65_536)];
    window_corrected_in_crlf: "crlf", [MMIO64];
    window_with_implied_name: "fwcfg-implied-name", [MMIO64];
    window_among_others: "fwcfg-among-others", [MMIO64];
    window_in_entities: "fwcfg-entities", [MMIO64];
    window_from_a_file: "fwcfg-file", [MMIO64];
    window_said_twice: "fwcfg-twice", [MMIO64];
    window_in_the_second_block: "fwcfg-two-blocks", [MMIO64];
    window_by_a_foreign_prefix: "prefix-foreign", [MMIO64];
    window_in_a_block_with_its_own_prefix: "prefix-local", [MMIO64];
    window_in_prefixed_attributes: "prefix-attributes", [MMIO64];
    window_after_a_lone_option: "fwcfg-without-value", [MMIO64];
    window_in_a_block_without_prefix: "prefix-none", [MMIO64];
    window_where_the_prefix_is_taken: "prefix-taken", [MMIO64];
    window_where_another_prefix_is_bound: "prefix-bound", [MMIO64];
    window_where_the_block_is_not_libvirts: "prefix-not-libvirt", [MMIO64];
    window_removed: "fwcfg", [Change::RemoveMmio64];
    window_removed_among_others: "fwcfg-among-others", [Change::RemoveMmio64];
    window_removed_twice: "fwcfg-twice", [Change::RemoveMmio64];
    window_removed_beside_a_comment: "fwcfg-block-with-comment", [Change::RemoveMmio64];
    window_removed_where_there_is_none: "named-model", [Change::RemoveMmio64];

    // `-global`, for old libvirt.
    global_in_a_new_block: "named-model", [global(43)];
    global_with_window: "named-model", [global(43), MMIO64];
    global_replaces_window: "fwcfg", [global(43), Change::RemoveMmio64];
    globals_corrected: "globals", [global(43)];
    global_beside_that_of_a_model: "global-of-a-model", [global(43)];
    global_of_the_host_goes_off: "global-host-width", [global(43)];
    global_of_the_host_goes_off_for_bits: "global-host-width", [emulate(43)];
    global_of_the_host: "named-model", [Change::SetCpuGlobal(CpuGlobal::HostPhysBits)];
    global_limit: "cpu-features-only", [Change::SetCpuGlobal(CpuGlobal::HostPhysBitsLimit(bits(43)))];
    second_cpu_corrected: "cpu-replaced", [emulate(43), PDPE1GB];
    second_cpu_and_global: "cpu-replaced", [global(43)];
}

/// What is no domain is refused, with the place and what to do.
#[test]
fn refusals() {
    let qemu = "<domain xmlns='http://libvirt.org/schemas/domain/qemu/1.0'/>";
    for (text, message) in [
        ("<domstatus><domain type='kvm'/></domstatus>", "1:1: `<domstatus>` is not a libvirt domain"),
        ("\n <network/>", "2:2: `<network>` is not a libvirt domain"),
        (qemu, "1:1: `<domain>` is not a libvirt domain"),
        ("<domain>", "1:9: the text ends before"),
        ("", "1:1: the text is empty"),
    ] {
        let error = rewrite(text.as_bytes(), &[emulate(43)]).unwrap_err().to_string();
        assert!(error.starts_with(message), "{text}: {error}");
    }
    let error = rewrite(b"<domain>\n<name>\xe9</name></domain>", &[MMIO64]).unwrap_err();
    assert_eq!((error.line, error.col), (2, 7));
}

/// Attribute values of a megabyte, and as much between them, cost no more than they must, and come out as they went in.
#[test]
fn huge_attributes() {
    let blanks = " ".repeat(900 << 10);
    let text = format!(
        "<domain type='kvm' note='{blanks}'{blanks}>\n  <cpu mode{blanks}=\n'host-model'{blanks}/>\n</domain>"
    );
    let new = String::from_utf8(rewrite(text.as_bytes(), &[emulate(43)]).unwrap()).unwrap();
    let expected = text.replace(
        &format!("'host-model'{blanks}/>"),
        "'host-model'>\n    <maxphysaddr mode='emulate' bits='43'/>\n  </cpu>",
    );
    assert!(new == expected);
}
