//! Every place that an installation fills, in the order in which it does.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::manifest::Manifest;
use super::{Options, apparmor};
use crate::deliver::place::State;
use crate::deliver::{daemon, here, shim};
use crate::host::{Host, Version};

/// libvirt runs `hooks/qemu.d/*` since this version.
const HOOK_FOLDER_SINCE: Version = Version(6, 5, 0);
pub(in crate::deliver) const HOOK: &str = "etc/libvirt/hooks/qemu";
const HOOK_OF_BEFORE: &str = "etc/libvirt/hooks/qemu.before-barfit";
pub(in crate::deliver) const HOOK_IN_FOLDER: &str = "etc/libvirt/hooks/qemu.d/50-barfit";
const PROGRAM: &str = "usr/bin/barfit";

/// When a place is filled.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// What confinement needs to know before there is a shim.
    Rules,
    /// Everything that no daemon uses yet.
    Files,
    /// The daemon's PATH.
    Path,
}

/// One place and what shall be there.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// From the root directory on.
    pub(super) path: PathBuf,
    pub(super) state: State,
    pub(super) stage: Stage,
    /// barfit's alone: replaced whatever is there.
    pub(super) own: bool,
    /// The operator's alone: written where it is missing, never changed.
    pub(super) keep: bool,
}

/// All places.
///
/// # Errors
/// The program cannot be read, or a file that is to be extended is none.
pub(super) fn all(options: &Options, manifest: &Manifest) -> Result<Vec<Place>, String> {
    let root = &options.root;
    let original = |path: &Path| -> Result<State, String> {
        match manifest.original(path)? {
            Some(state) => Ok(state),
            None => State::read(&root.join(path)).map_err(|error| format!("/{}: {error}", path.display())),
        }
    };
    let place = |path: &Path, state: State, stage: Stage| Place {
        path: path.to_owned(),
        state,
        stage,
        own: false,
        keep: false,
    };
    let program =
        fs::read(&options.program).map_err(|error| format!("{}: {error}", options.program.display()))?;
    let program = State::file(program, 0o755);
    let names: Vec<&str> =
        if options.no_shim { Vec::new() } else { emulators(root)?.iter().map(|(name, _)| *name).collect() };
    let mut all = Vec::new();
    if !names.is_empty() {
        for (path, state) in apparmor::wanted(root, &names, original)? {
            all.push(place(&path, state, Stage::Rules));
        }
    }
    all.push(Place { own: true, ..place(Path::new(PROGRAM), program.clone(), Stage::Files) });
    let policy = State::file(include_bytes!("barfit.toml"), 0o644);
    all.push(Place { keep: true, ..place(Path::new(here::POLICY), policy, Stage::Files) });
    let libvirt = Host::at(root).libvirt_version().map(|found| found.version);
    if libvirt.is_none_or(|version| version >= HOOK_FOLDER_SINCE) {
        let hook = State::file(include_bytes!("../../../hooks/qemu.d/50-barfit"), 0o755);
        all.push(place(Path::new(HOOK_IN_FOLDER), hook, Stage::Files));
    } else {
        let before = original(Path::new(HOOK))?;
        if before != State::Absent {
            all.push(place(Path::new(HOOK_OF_BEFORE), before, Stage::Files));
        }
        let hook = State::file(include_bytes!("../../../hooks/qemu"), 0o755);
        all.push(place(Path::new(HOOK), hook, Stage::Files));
    }
    if names.is_empty() {
        return Ok(all);
    }
    let folder = Path::new(shim::FOLDER);
    for (name, real) in emulators(root)?.iter().filter(|(name, _)| names.contains(name)) {
        all.push(place(&folder.join("real").join(name), State::Link(real.clone()), Stage::Files));
        all.push(Place { own: true, ..place(&folder.join(name), program.clone(), Stage::Files) });
    }
    for unit in daemon::UNITS {
        let path = PathBuf::from(format!("etc/systemd/system/{unit}.service.d/50-barfit.conf"));
        let text = format!(
            "# Written by `barfit install`: libvirt finds barfit's emulator shim first.\n[Service]\n\
             Environment=\"PATH=/{}:{}\"\n",
            shim::FOLDER,
            daemon::path_of(unit, options.commands())
        );
        all.push(place(&path, State::file(text, 0o644), Stage::Path));
    }
    Ok(all)
}

/// The names of the shims among the places.
pub(super) fn shims(places: &[Place]) -> Vec<&str> {
    let shims = places.iter().filter(|place| is_shim(&place.path));
    shims.filter_map(|place| place.path.file_name()?.to_str()).collect()
}

/// Whether a place is that of a shim.
pub(super) fn is_shim(path: &Path) -> bool {
    path.parent() == Some(Path::new(shim::FOLDER)) && path.file_name().is_some_and(shim::is_emulator_name)
}

/// Whether a place decides on the daemon's PATH.
pub(super) fn sets_path(path: &Path) -> bool {
    path.starts_with("etc/systemd/system") && path.extension().is_some_and(|extension| extension == "conf")
}

/// The emulators of this host that get a shim, each with where it is.
///
/// # Errors
/// One of them cannot be looked at.
fn emulators(root: &Path) -> Result<Vec<(&'static str, PathBuf)>, String> {
    let mut found = Vec::new();
    for name in shim::NAMES {
        let Ok(path) = shim::real_emulator(root, name.as_ref()) else { continue };
        // Links such as /usr/bin/kvm to a script of the distribution's stay what they are: libvirt does not look
        // for them where the first name exists.
        let facts = fs::symlink_metadata(root.join(path.strip_prefix("/").unwrap_or(&path)))
            .map_err(|error| format!("{}: {error}", path.display()))?;
        if facts.is_file() && facts.mode() & 0o111 != 0 {
            found.push((name, path));
        }
    }
    Ok(found)
}
