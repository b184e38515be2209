//! What is true of every rewriting, tried on domains in many spellings: any quotes, blanks, line ends, indentation,
//! comments, prefixes and duplicates.

#[path = "properties/kept.rs"]
mod kept;
#[path = "properties/spelling.rs"]
mod spelling;

use barfit::domain::{Document, QEMU_NAMESPACE};
use barfit::plan::{Change, CpuGlobal, MaxPhysAddrValue};
use barfit::rewrite::rewrite;
use barfit::units::PhysBits;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use kept::{blocks, kept_tree, parse, plain_child, untouched};
use spelling::{Item, Pen, leaf};

// --- Domains in many spellings ---------------------------------------------------------------------------------

fn cpu() -> impl Strategy<Value = Item> {
    let number = || select(&["40", "43", "043", "46", "999", "x"][..]);
    let maxphysaddr = (
        proptest::option::of(select(&["emulate", "passthrough"][..])),
        proptest::option::of(number()),
        proptest::option::of(number()),
    )
        .prop_map(|(mode, bits, limit)| {
            let all = [("limit", limit), ("mode", mode), ("bits", bits)];
            let given: Vec<_> = all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
            leaf("maxphysaddr", &given)
        });
    let feature = (
        select(&["pdpe1gb", "vmx"][..]),
        proptest::option::of(select(&["require", "force", "optional", "disable", "forbid"][..])),
    )
        .prop_map(|(name, policy)| {
            let mut attributes = vec![("name", name)];
            attributes.extend(policy.map(|policy| ("policy", policy)));
            leaf("feature", &attributes)
        });
    let child = prop_oneof![
        maxphysaddr,
        feature,
        Just(leaf("topology", &[("sockets", "2"), ("cores", "16"), ("threads", "1")])),
        Just(Item::Element("model", vec![("fallback", "allow".into())], vec![Item::Raw("EPYC".into())])),
        Just(leaf("numa", &[])),
        Just(leaf("unknown", &[("maxphysaddr", "40")])),
        select(&["<!-- x -->", "text", "<![CDATA[</cpu>]]>", "<?pi?>"][..])
            .prop_map(|text| Item::Raw(text.into())),
    ];
    let mode = proptest::option::of(select(&["custom", "host-model", "host-passthrough", "maximum"][..]));
    (mode, proptest::collection::vec(child, 0..6)).prop_map(|(mode, children)| {
        Item::Element("cpu", mode.map(|mode| ("mode", mode.to_owned())).into_iter().collect(), children)
    })
}

const WORDS: &[&str] = &[
    "-fw_cfg",
    "--fw_cfg",
    "name=opt/ovmf/X-PciMmio64Mb,string=65536",
    "opt/ovmf/X-PciMmio64Mb,string=65536",
    "opt/ovmf/X-PciMmio64Mb,file=/a,,b",
    "name=opt/org.example/x,string=a,,name=opt/ovmf/X-PciMmio64Mb",
    "-global",
    "x86_64-cpu.phys-bits=40",
    "x86_64-cpu.host-phys-bits=on",
    "driver=cpu,property=phys-bits,value=43",
    "-cpu",
    "EPYC,phys-bits=40,-pdpe1gb",
    "host",
    "-device",
    "virtio-rng-pci",
    "a&<>'\"b",
];

fn block(name: &'static str, arg: &'static str, own: Option<&'static str>) -> impl Strategy<Value = Item> {
    // Mostly an option and a value that may be its own, sometimes any word.
    let word = prop_oneof![
        3 => (select(&[0usize, 1, 6, 10][..]), 1..6usize)
            .prop_map(|(option, offset)| vec![WORDS[option], WORDS[option + offset]]),
        1 => select(WORDS).prop_map(|word| vec![word]),
    ];
    proptest::collection::vec(word, 0..4).prop_map(move |words| {
        let args = words.concat().iter().map(|word| leaf(arg, &[("value", word)])).collect();
        let own = own.map(|own| (own, QEMU_NAMESPACE.to_owned()));
        Item::Element(name, own.into_iter().collect(), args)
    })
}

/// A domain, spelled.
fn domain() -> impl Strategy<Value = String> {
    let foreign = Item::Element(
        "metadata",
        vec![("xmlns", "urn:foreign".to_owned())],
        vec![leaf("cpu", &[("mode", "x")]), leaf("commandline", &[])],
    );
    let child = prop_oneof![
        2 => cpu(),
        1 => Just(leaf("features", &[])),
        1 => Just(Item::Element("os", vec![], vec![leaf("type", &[("arch", "x86_64")])])),
        1 => Just(leaf("clock", &[("offset", "utc")])),
        1 => Just(Item::Element("devices", vec![], vec![leaf("emulator", &[]), leaf("cpu", &[])])),
        1 => Just(foreign),
        1 => block("qemu:commandline", "qemu:arg", None),
        1 => block("q:commandline", "q:arg", Some("xmlns:q")),
        1 => block("commandline", "arg", Some("xmlns")),
    ];
    // What `xmlns:qemu` on `<domain>` says. Nothing, where no child uses the prefix.
    let bound = select(&[None, Some(QEMU_NAMESPACE), Some("urn:other")][..]);
    let style = (
        select(&["\n", "\n", "\r\n", ""][..]),
        select(&["  ", "  ", "\t", "    ", " ", ""][..]),
        select(&["", "", "\u{feff}", "<?xml version='1.0'?>\n", "<!-- <domain> -->\r\n"][..]),
        proptest::collection::vec(any::<u8>(), 1..200),
    );
    (proptest::collection::vec(child, 0..8), bound, style).prop_map(
        |(children, bound, (newline, indent, head, tape))| {
            let uses = children.iter().any(|child| matches!(child, Item::Element("qemu:commandline", ..)));
            let bound = if uses { bound.or(Some(QEMU_NAMESPACE)) } else { bound };
            let mut attributes = vec![("type", "kvm".to_owned())];
            attributes.extend(bound.map(|uri| ("xmlns:qemu", uri.to_owned())));
            let mut pen = Pen { out: head.to_owned(), tape: tape.iter().cycle(), newline, indent };
            pen.item(&Item::Element("domain", attributes, children), 0);
            let end = pen.choose(&["\n", "\r\n", "", "<!-- end -->"]);
            pen.out + end
        },
    )
}

/// A plan: at most one change of each kind, in any order.
fn changes() -> impl Strategy<Value = Vec<Change>> {
    let bits = || select(&[40u64, 43, 46][..]).prop_map(|bits| PhysBits::new(bits).expect("in range"));
    let width = prop_oneof![
        bits().prop_map(MaxPhysAddrValue::Emulate),
        proptest::option::of(bits()).prop_map(|limit| MaxPhysAddrValue::Passthrough { limit }),
    ]
    .prop_map(Change::SetMaxPhysAddr);
    let global = prop_oneof![
        bits().prop_map(CpuGlobal::PhysBits),
        Just(CpuGlobal::HostPhysBits),
        bits().prop_map(CpuGlobal::HostPhysBitsLimit),
    ]
    .prop_map(Change::SetCpuGlobal);
    let window = prop_oneof![
        select(&[65_536u32, 2_097_152][..]).prop_map(Change::SetMmio64Mib),
        Just(Change::RemoveMmio64)
    ];
    // libvirt either knows `<maxphysaddr>` or needs a `-global`.
    let width = proptest::option::of(prop_oneof![width, global]);
    let feature = proptest::option::of(Just(Change::RequireFeature("pdpe1gb")));
    (width, feature, proptest::option::of(window))
        .prop_map(|(width, feature, window)| {
            [width, feature, window].into_iter().flatten().collect::<Vec<_>>()
        })
        .prop_shuffle()
}

// --- What must be true -----------------------------------------------------------------------------------------

/// Every word of QEMU's in the domain.
fn words(document: &roxmltree::Document<'_>) -> Vec<String> {
    let blocks = blocks(document);
    let args = blocks.iter().flat_map(|block| block.children());
    let args = args.filter(|child| child.has_tag_name((QEMU_NAMESPACE, "arg")));
    args.map(|arg| arg.attribute("value").unwrap_or_default().to_owned()).collect()
}

fn shows(text: &str, change: &Change) -> Result<(), TestCaseError> {
    let document = parse(text);
    let cpu = plain_child(document.root_element(), "cpu");
    let words = words(&document);
    let entries = words.windows(2).filter(|pair| {
        pair[0].ends_with("-fw_cfg")
            && pair[1].trim_start_matches("name=").starts_with("opt/ovmf/X-PciMmio64Mb,")
    });
    let entries: Vec<_> = entries.map(|pair| pair[1].rsplit(',').next().unwrap_or_default()).collect();
    match change {
        Change::SetMaxPhysAddr(value) => {
            let element = cpu.and_then(|cpu| plain_child(cpu, "maxphysaddr")).expect("maxphysaddr");
            let number = |name| element.attribute(name).map(|value| value.parse::<u8>().expect("a number"));
            let said = (element.attribute("mode"), number("bits"), number("limit"));
            prop_assert_eq!(
                said,
                match value {
                    MaxPhysAddrValue::Emulate(bits) => (Some("emulate"), Some(bits.get()), None),
                    MaxPhysAddrValue::Passthrough { limit } =>
                        (Some("passthrough"), None, limit.map(PhysBits::get)),
                }
            );
        }
        Change::RequireFeature(name) => {
            let cpu = cpu.expect("cpu");
            let named = cpu.children().filter(|child| child.attribute("name") == Some(name));
            let policies: Vec<_> = named.map(|feature| feature.attribute("policy")).collect();
            prop_assert!(!policies.is_empty());
            prop_assert!(policies.iter().all(|policy| matches!(policy, None | Some("require" | "force"))));
        }
        Change::SetMmio64Mib(mib) => prop_assert_eq!(entries, [format!("string={mib}")]),
        Change::RemoveMmio64 => prop_assert!(entries.is_empty()),
        Change::SetCpuGlobal(global) => {
            let (property, value) = match global {
                CpuGlobal::PhysBits(bits) => ("phys-bits", bits.to_string()),
                CpuGlobal::HostPhysBits => ("host-phys-bits", "on".to_owned()),
                CpuGlobal::HostPhysBitsLimit(bits) => ("host-phys-bits-limit", bits.to_string()),
            };
            let short = format!("x86_64-cpu.{property}={value}");
            let long = format!("driver=cpu,property={property},value={value}");
            let by_cpu = format!(",{property}={value}");
            prop_assert!(
                words.iter().any(|word| *word == short || *word == long || word.contains(&by_cpu)),
                "{:?}",
                words
            );
        }
    }
    Ok(())
}

/// libvirt refuses features of a custom CPU without a model.
fn is_refused(text: &str) -> bool {
    let document = parse(text);
    plain_child(document.root_element(), "cpu").is_some_and(|cpu| {
        matches!(cpu.attribute("mode"), None | Some("custom"))
            && plain_child(cpu, "feature").is_some()
            && plain_child(cpu, "model").is_none()
    })
}

/// Words that no change is about, each up to its first comma: what follows there a CPU may be given.
fn other_words(text: &str) -> Vec<String> {
    let mut words = words(&parse(text));
    words.retain(|word| {
        !["-fw_cfg", "--fw_cfg", "-global"].contains(&word.as_str())
            && !word.contains("X-PciMmio64Mb")
            && !word.contains("cpu.phys-bits")
            && !word.contains("cpu.host-phys-bits")
            && !word.contains("property=")
    });
    words.iter().map(|word| word.split(',').next().unwrap_or_default().to_owned()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn no_change_no_difference(text in domain()) {
        prop_assert_eq!(rewrite(text.as_bytes(), &[]), Ok(text.into_bytes()));
    }

    #[test]
    fn a_rewriting_does_what_it_should_and_no_more(text in domain(), changes in changes()) {
        let new = rewrite(text.as_bytes(), &changes);
        prop_assert!(new.is_ok(), "{:?}", new);
        let new = String::from_utf8(new.expect("checked")).expect("UTF-8");
        for change in &changes {
            shows(&new, change)?;
        }
        prop_assert!(!is_refused(&new) || is_refused(&text));
        prop_assert_eq!(untouched(&new), untouched(&text));
        prop_assert_eq!(kept_tree(&new), kept_tree(&text));
        prop_assert_eq!(other_words(&new), other_words(&text));
        prop_assert_eq!(rewrite(new.as_bytes(), &changes), Ok(new.clone().into_bytes()), "twice");
        prop_assert!(new.contains("\r\n") || !text.contains("\r\n"));
        prop_assert!(text.contains('\r') || !new.contains('\r'), "another line end");
    }

    #[test]
    fn damaged_texts_never_panic(
        text in domain(),
        changes in changes(),
        damage in proptest::collection::vec((any::<Index>(), 0..4usize, any::<u8>(), any::<Index>()), 1..5),
    ) {
        let mut bytes = text.into_bytes();
        for (at, kind, byte, other) in damage {
            let at = at.index(bytes.len().max(1)).min(bytes.len());
            let other = other.index(bytes.len().max(1)).min(bytes.len());
            match kind {
                0 => bytes.insert(at, byte),
                1 => { bytes.drain(at.min(other)..at.max(other)); }
                2 => { let part = bytes[at.min(other)..at.max(other)].to_vec(); bytes.splice(at..at, part); }
                _ => bytes.truncate(bytes.len().saturating_sub(usize::from(byte))),
            }
        }
        if let Ok(new) = rewrite(&bytes, &changes) {
            prop_assert!(Document::parse(&new).is_ok());
            prop_assert_eq!(rewrite(&new, &changes), Ok(new), "twice");
        }
    }
}
