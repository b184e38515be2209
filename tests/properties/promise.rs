//! A domain: barfit's promise is checked again on its own output.

use std::sync::LazyLock;

use barfit::catalogue::Entry;
use barfit::domain::{Document, Domain};
use barfit::guest::{FirmwareChoice, Source};
use barfit::host::HostFacts;
use barfit::plan::{Answer, Policy, Request, Verdict, answer};
use barfit::report::{Check, Detail, Paint, check_text, headline};
use barfit::rewrite::{argv, diff, rewrite};

use super::argv::is_settled;
use super::kept::{kept_tree, untouched};

/// What a domain is judged by.
#[derive(Clone)]
pub(crate) struct Case<'a> {
    pub(crate) host: &'a HostFacts,
    pub(crate) policy: Policy,
    pub(crate) firmware: Option<FirmwareChoice>,
    pub(crate) assume_gpu: Option<&'static Entry>,
}

impl<'a> Case<'a> {
    pub(crate) fn on(host: &'a HostFacts) -> Case<'a> {
        Case { host, policy: Policy::default(), firmware: None, assume_gpu: None }
    }

    fn answer(&self, domain: &Domain) -> Answer {
        answer(&Request {
            domain,
            host: self.host,
            host_is: Source::HostFile,
            policy: &self.policy,
            firmware: self.firmware.as_ref(),
            assume_gpu: self.assume_gpu,
        })
    }
}

/// The hosts that ship.
pub(super) static HOSTS: LazyLock<Vec<HostFacts>> = LazyLock::new(|| {
    let texts = [
        include_str!("../../examples/hosts/xeon-46-h100.json"),
        include_str!("../../examples/hosts/old-libvirt-8.0.json"),
        include_str!("../../examples/hosts/xeon-46-h100-debian13.json"),
        include_str!("../../examples/hosts/core-46-iommu-39-rtx4090.json"),
        include_str!("../../examples/hosts/epyc-48-mi300x.json"),
        include_str!("../../examples/hosts/nothing-known.json"),
        include_str!("../../examples/hosts/xeon-46-a100.json"),
        include_str!("../../examples/hosts/xeon-46-b300.json"),
        include_str!("../../examples/hosts/xeon-46-v100.json"),
        include_str!("../../examples/hosts/xeon-52-b200.json"),
    ];
    texts.map(|text| HostFacts::from_json(text).expect("a host that ships")).into()
});

/// Any bytes as a domain, on the three hosts whose GPUs most examples have: of today, before libvirt knew
/// `<maxphysaddr>`, and with a firmware whose window can be set exactly.
pub(super) fn domain_xml(bytes: &[u8]) {
    for host in &HOSTS[..3] {
        holds(bytes, &Case::on(host));
    }
}

/// Holds a domain's bytes to everything that barfit promises. Gives the verdict where they are a domain.
pub(crate) fn holds(bytes: &[u8], case: &Case<'_>) -> Option<Verdict> {
    let document = match Document::parse(bytes) {
        Ok(document) => document,
        Err(error) => {
            is_clear(bytes, &error.to_string());
            assert_eq!(
                rewrite(bytes, &[]).expect_err("refused"),
                error,
                "a text that is refused is refused everywhere"
            );
            return None;
        }
    };
    let domain = match Domain::from_document(&document) {
        Ok(domain) => domain,
        Err(error) => {
            is_clear(bytes, &error.to_string());
            return None;
        }
    };
    assert!(rewrite(bytes, &[]).expect("a domain") == bytes, "no change, another text");
    let now = case.answer(&domain);
    is_shown(&domain, &now);
    let changes = &now.plan.changes;
    if matches!(now.verdict, Verdict::NoPassthrough | Verdict::Unknown) {
        assert!(
            changes.is_empty(),
            "{:?} changes what cannot be known or is not barfit's: {changes:?}",
            now.verdict
        );
    }
    let (before, after) = (now.gpus_placed(now.present.as_ref()), now.gpus_placed(now.plan.layout.as_ref()));
    assert!(now.verdict == Verdict::Unknown || after >= before, "{before} GPUs before, {after} after");
    assert!(
        now.verdict != Verdict::Fits || now.plan.verdict == Verdict::Fits,
        "worse: {:?}",
        now.plan.verdict
    );
    if changes.is_empty() {
        assert_eq!(now.plan.verdict, now.verdict, "nothing changes but the verdict");
        return Some(now.verdict);
    }

    let new = rewrite(bytes, changes).expect("a plan can be carried out");
    let (old_text, new_text) = (document.text(), std::str::from_utf8(&new).expect("UTF-8 stays UTF-8"));
    assert_eq!(untouched(new_text), untouched(old_text), "bytes outside the edits");
    assert_eq!(kept_tree(new_text), kept_tree(old_text), "meaning outside the edits");
    assert!(
        rewrite(&new, changes).as_ref() == Ok(&new),
        "made twice, {changes:?} change more than made once"
    );
    assert_eq!(diff::unified("x", bytes, &new).is_empty(), *bytes == *new);

    let changed = Domain::parse(&new).expect("the output is a domain");
    let then = case.answer(&changed);
    assert_eq!(then.verdict, now.plan.verdict, "the promise of {changes:?}");
    assert_eq!(then.plan.changes, [], "a second pass changes more, after {changes:?}");
    assert_eq!(then.gpus_placed(then.present.as_ref()), after, "GPUs promised by {changes:?}");
    assert_eq!(then.plan.phys_bits, now.plan.phys_bits, "width promised by {changes:?}");
    let plain = ["qemu-system-x86_64", "-machine", "q35", "-cpu", "Skylake-Server", "-m", "8"];
    is_settled(&argv::rewrite(plain.map(Into::into).into(), changes), changes);
    Some(now.verdict)
}

/// A refusal names a place in the text, and is one line that a terminal can show.
fn is_clear(bytes: &[u8], message: &str) {
    let mut parts = message.splitn(3, ':');
    let mut number = || parts.next().and_then(|part| part.parse::<usize>().ok()).expect("LINE:COL: message");
    let (line, column) = (number(), number());
    let lines = 1 + bytes.iter().filter(|byte| **byte == b'\n').count();
    assert!((1..=lines).contains(&line) && (1..=bytes.len() + 1).contains(&column), "{message}");
    assert!(parts.next().is_some_and(|text| text.trim().len() > 10), "{message}");
    is_printable(message);
}

/// What is shown is whole, and holds nothing that a terminal obeys.
fn is_shown(domain: &Domain, answer: &Answer) {
    let text = check_text(domain, answer, Detail::Full, Paint(false));
    is_printable(&text.replace('\n', " "));
    is_printable(&headline(domain, answer));
    let json = Check::new(domain, answer).to_text().expect("an answer is JSON");
    let value: serde_json::Value = serde_json::from_str(&json).expect("what is printed is JSON");
    assert_eq!(value["verdict"], serde_json::to_value(answer.verdict).expect("a word"));
}

pub(super) fn is_printable(text: &str) {
    assert!(!text.contains(char::is_control), "control characters in {text:?}");
}
