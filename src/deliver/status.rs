//! `status`: what happened at the last start of each guest, from the hook's records since this host was booted.

use std::path::Path;

use serde::Serialize;

use super::plan_file;
use super::starts::{self, Start};
use crate::text::printable;

/// The value of `schema`.
pub const SCHEMA: &str = "barfit/status/1";

/// For people: a line or two a guest, the latest start first.
pub fn text(root: &Path) -> String {
    let starts = starts::all(root);
    if starts.is_empty() {
        return "no guest with passed-through devices has started since this host was booted, or barfit's hook is not \
                installed (`barfit doctor`)\n"
            .to_owned();
    }
    let now = plan_file::now();
    starts.iter().map(|start| line(start, now)).collect()
}

fn line(start: &Start, now: u64) -> String {
    let outcome = match start.applied {
        _ if start.planned.is_empty() => "nothing to change",
        Some(true) => "applied",
        Some(false) => "not applied",
        None => "planned; the guest has not come up",
    };
    let [name, summary] = [&start.name, &start.summary].map(|text| printable(text));
    format!("{name}  {} ago: {outcome}\n    {summary}\n", age(now.saturating_sub(start.time)))
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// For programs: `barfit/status/1`, an array of the starts, the latest first.
///
/// # Errors
/// JSON that cannot be written.
pub fn json(root: &Path) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct Status {
        schema: &'static str,
        starts: Vec<Start>,
    }
    let status = Status { schema: SCHEMA, starts: starts::all(root) };
    Ok(serde_json::to_string_pretty(&status)? + "\n")
}
