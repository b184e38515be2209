//! What the hook gives up before it looks at a domain: it may read what root may read, and write only below its own
//! folders; it may run no program and reach no network, whatever a domain makes of it.
//!
//! By the kernel's Landlock, as far as this kernel has it (5.13, and more with each version since). Where something of
//! it fails the hook goes on as it is: a guest's start matters more. Datagrams to the journal's socket are none of
//! Landlock's business, and the times of a shim are none either.

use std::fs;
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};

/// Newest of Landlock that barfit knows; an older kernel enforces what it can.
const KNOWN: ABI = ABI::V6;
/// The folders that the hook writes to.
const WRITTEN: [&str; 3] = ["run/barfit", "var/lib/barfit", "var/cache/barfit"];
/// What is written here is lost, as whoever opens it wants: a profiler or a tracer around the hook, for one.
const NOWHERE: &str = "dev/null";

/// Confines this process, and every thread that it starts from now on. `false` where that is not possible.
pub fn confine(root: &Path) -> bool {
    rules(root).is_ok_and(|rules| restrict(rules).is_ok())
}

/// The folders, open, with what may be done below each. All of them or none: with one missing, a plan could not be
/// written that could be without any.
fn rules(root: &Path) -> io::Result<Vec<PathBeneath<PathFd>>> {
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let open = |path: &Path, access: BitFlags<AccessFs>| {
        PathFd::new(path).map(|folder| PathBeneath::new(folder, access)).map_err(io::Error::other)
    };
    let mut rules = vec![open(root, reading)?];
    for folder in WRITTEN {
        let folder = root.join(folder);
        let access = reading | AccessFs::from_write(KNOWN);
        let opened = open(&folder, access);
        rules.push(opened.or_else(|_| fs::create_dir_all(&folder).and_then(|()| open(&folder, access)))?);
    }
    if let Ok(rule) = open(&root.join(NOWHERE), AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate)
    {
        rules.push(rule);
    }
    Ok(rules)
}

fn restrict(rules: Vec<PathBeneath<PathFd>>) -> Result<(), landlock::RulesetError> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?;
    let created = rules.into_iter().try_fold(ruleset.create()?, |ruleset, rule| ruleset.add_rule(rule))?;
    created.restrict_self().map(|_| ())
}
