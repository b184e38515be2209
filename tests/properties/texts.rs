//! The other texts: host files, policies, plans, kernel logs.

use std::sync::LazyLock;

use barfit::deliver::doctor;
use barfit::deliver::plan_file::{PlanFile, is_uuid};
use barfit::domain::Domain;
use barfit::guest::Source;
use barfit::host::HostFacts;
use barfit::plan::{Answer, Policy, Request, answer};
use barfit::report::{Paint, host_text};
use barfit::rewrite::argv;

use super::argv::is_settled;
use super::promise::{Case, HOSTS, holds, is_printable};

/// Examples that between them take every turn of a plan: named and host CPUs, with and without a window of their
/// own, BIOS, hot-plug memory, one with a rule's flavor, one in strict mode.
const DOMAINS: [&str; 6] = [
    include_str!("../../examples/four-h100.xml"),
    include_str!("../../examples/bios-four-h100-512g.xml"),
    include_str!("../../examples/fw-cfg-short.xml"),
    include_str!("../../examples/host-passthrough.xml"),
    include_str!("../../examples/nova.xml"),
    include_str!("../../examples/dimm-slots.xml"),
];

/// A file of host facts.
pub(super) fn host_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let host = match HostFacts::from_json(text) {
        Ok(host) => host,
        Err(error) => {
            return assert!(!error.message.is_empty() && error.line <= 1 + text.matches('\n').count());
        }
    };
    let written = host.to_json().expect("facts are JSON");
    assert_eq!(HostFacts::from_json(&written).as_ref(), Ok(&host), "written and read again");
    is_printable(&host_text(&host, Paint(false)).replace('\n', " "));
    let checks = doctor::machine(&host);
    is_printable(&doctor::text(&checks).replace('\n', " "));
    for domain in DOMAINS {
        holds(domain.as_bytes(), &Case::on(&host));
    }
}

/// A policy file, of the operator or of a domain's author.
pub(super) fn policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut policy = Policy::default();
    if let Err(error) = policy.add(text) {
        assert!(!error.message.is_empty() && !error.message.contains('\n'), "{error}");
        assert!((1..=1 + text.matches('\n').count()).contains(&(error.line as usize)), "{error}");
        assert_eq!(policy, Policy::default(), "a policy that is refused says nothing");
        return;
    }
    for (domain, host) in DOMAINS.into_iter().zip([0, 0, 0, 6, 0, 0].map(|at| &HOSTS[at])) {
        holds(domain.as_bytes(), &Case { policy: policy.clone(), ..Case::on(host) });
    }
}

const UUID: &str = "6f0c7d2e-6b0a-4a4e-9d55-0a4b1c6c2f01";

/// A plan file, as the shim reads it.
pub(super) fn plan_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let plan = match PlanFile::parse(text, UUID, "boot", 1_000_000) {
        Ok(plan) => plan,
        Err(why) => return assert!(!why.is_empty()),
    };
    assert!(is_uuid(&plan.uuid) && plan.boot_id == "boot");
    let again = serde_json::to_string(&plan).expect("a plan is JSON");
    assert_eq!(
        PlanFile::parse(&again, UUID, "boot", 1_000_000).as_ref(),
        Ok(&plan),
        "written and read again"
    );
    for line in [
        "q -machine q35 -cpu host,migratable=on -m 8",
        "q -machine pc-q35-rhel9.4.0 -cpu X,phys-bits=40,-pdpe1gb -fw_cfg name=opt/ovmf/X-PciMmio64Mb,string=1",
        "q -global x86_64-cpu.phys-bits=40",
    ] {
        // Of several changes of one kind the last is made; a plan holds at most one.
        let mut changes = plan.changes.clone();
        let mut seen = Vec::new();
        changes.retain(|change| {
            let kind = std::mem::discriminant(change);
            !seen.contains(&kind) && {
                seen.push(kind);
                true
            }
        });
        is_settled(&argv::rewrite(line.split(' ').map(Into::into).collect(), &changes), &changes);
    }
}

/// A guest's kernel log.
pub(super) fn dmesg(bytes: &[u8]) {
    static ANSWER: LazyLock<Answer> = LazyLock::new(|| {
        let domain = Domain::parse(DOMAINS[0].as_bytes()).expect("an example");
        let policy = Policy::default();
        let host = &HOSTS[0];
        answer(&Request {
            domain: &domain,
            host,
            host_is: Source::HostFile,
            policy: &policy,
            firmware: None,
            assume_gpu: None,
        })
    });
    let log = String::from_utf8_lossy(bytes);
    let checks = doctor::log(&log, Some(&ANSWER));
    assert!(checks.len() <= 1 + log.lines().count(), "more symptoms than lines");
    assert_eq!(checks.len(), doctor::log(&log, None).len());
    is_printable(&doctor::text(&checks).replace('\n', " "));
    doctor::json(&checks).expect("checks are JSON");
}
