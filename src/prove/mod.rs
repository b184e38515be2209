//! Asks the real firmware: boots it in the real QEMU with stand-in devices and reads where it puts every BAR.
//!
//! [`stand_in()`] replaces a guest's devices by devices that QEMU has, and says what differs; [`Rig`] turns
//! that into a QEMU command line; [`boot`] runs it, knows when the firmware is done, and gives back what
//! happened; [`compare`] puts the prediction of [`crate::layout`] beside it. [`sweep()`] does all of that for
//! random guests. Nothing of the host is touched: no device, no libvirt, one private folder that goes away.
//!
//! This room starts processes; it prints only where it is handed something to print to. What it knows about
//! QEMU's options and traces was measured with QEMU 7.2.

mod compare;
mod fate;
mod files;
mod geometry;
mod hang;
mod json;
mod observe;
mod proof;
mod qemu;
mod qmp;
mod rig;
mod stand_in;
mod sweep;
mod text;
pub mod trace;

use std::path::PathBuf;

pub use compare::{Agreement, compare};
pub use files::{FirmwareFiles, find_qemu};
pub use geometry::{Geometry, geometry};
pub use json::proof_json;
pub use observe::{Limits, Observed, Seen, boot};
pub use proof::{Proof, complaints, prove, used_by_linux};
pub use rig::{Accel, Linux, Rig};
pub use stand_in::{Device, Fixed, StandIn, Stood, stand_in};
pub use sweep::{Case, Subject, Summary, case, rule, sweep};
pub use text::proof_text;

/// What goes wrong while asking, as opposed to what the firmware answers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program that is needed is not there.
    #[error("`{program}` is not installed: {advice}")]
    Missing {
        /// Its name.
        program: String,
        /// How to get it.
        advice: &'static str,
    },
    /// A firmware file, or the NVRAM file that belongs to it, is not there.
    #[error("no firmware at {}: {advice}", path.display())]
    NoFirmware {
        /// Where it was looked for.
        path: PathBuf,
        /// How to get it.
        advice: &'static str,
    },
    /// The guest has something that stand-ins or the local QEMU cannot have.
    #[error("cannot be proved here: {0}")]
    Unsupported(String),
    /// Reading or writing failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What came back.
        source: std::io::Error,
    },
    /// QEMU did not answer as QMP wants it.
    #[error("QEMU's monitor: {0}")]
    Monitor(String),
    /// The devices that QEMU made are not those of the guest: the rig is wrong, and its answer worthless.
    #[error("the rig does not mirror the guest: {0}")]
    Mirror(String),
    /// A signal asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}

/// `Result` with this room's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
