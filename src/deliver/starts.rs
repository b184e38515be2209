//! What happened at the last start of each guest: one small file a guest in `/run/barfit/starts`, for `status`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan_file::{is_uuid, write_atomically};
use crate::plan::Verdict;

/// Where the records are, below the root directory.
pub const STARTS: &str = "run/barfit/starts";

/// The last start of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The guest's UUID.
    pub uuid: String,
    /// The guest's name.
    pub name: String,
    /// When `prepare` ran, in seconds since 1970.
    pub time: u64,
    /// How the guest fares by its definition.
    pub verdict: Verdict,
    /// What was planned, as it would stand in the XML.
    pub planned: Vec<String>,
    /// Whether the running QEMU has it; `None` until the guest has started.
    pub applied: Option<bool>,
    /// What happened, in one sentence.
    pub summary: String,
}

/// Remembers a start.
///
/// # Errors
/// The UUID is none, or the file cannot be written.
pub fn remember(root: &Path, start: &Start) -> io::Result<()> {
    let path = path(root, &start.uuid)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the domain has no valid UUID"))?;
    write_atomically(&path, &serde_json::to_vec(start)?)
}

/// The last start of one guest, if there is a record that can be read.
pub fn recall(root: &Path, uuid: &str) -> Option<Start> {
    serde_json::from_slice(&fs::read(path(root, uuid)?).ok()?).ok()
}

/// The last starts of all guests, newest first. Files that cannot be read are passed over.
pub fn all(root: &Path) -> Vec<Start> {
    let files = fs::read_dir(root.join(STARTS)).into_iter().flatten().flatten();
    let uuids = files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".json")?.to_owned()));
    let mut starts: Vec<Start> = uuids.filter_map(|uuid| recall(root, &uuid)).collect();
    starts.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.name.cmp(&b.name)));
    starts
}

/// Takes away what a hook that was killed while it wrote a record has left.
pub(super) fn sweep(root: &Path, uuid: &str) {
    if let Some(path) = path(root, uuid) {
        super::plan_file::sweep(&path);
    }
}

fn path(root: &Path, uuid: &str) -> Option<PathBuf> {
    is_uuid(uuid).then(|| root.join(STARTS).join(format!("{uuid}.json")))
}
