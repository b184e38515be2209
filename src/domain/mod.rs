//! What a guest asks for: a typed, read-only view of a libvirt domain XML.
//!
//! Knows libvirt's spelling in every form it meets (dumpxml, `--inactive`, the hook's `prepare`, hand-written) and
//! keeps the difference between *absent* and *default*. It does not know this machine, any BAR size or any
//! firmware rule. Rules of meaning come from libvirt 9.0 and 11.3 (`src/conf/domain_conf.c`, `cpu_conf.c`,
//! `src/util/virxml.c`) and its documentation (formatdomain).

mod assign;
mod command_line;
mod controller;
mod cpu;
mod device;
mod document;
mod emulated;
mod error;
mod memory;
mod metadata;
mod model;
mod parse;
mod placing;
mod qemu_device;
pub(crate) mod qemu_options;
mod read;
mod slots;
pub mod topology;
mod value;

pub(crate) use command_line::MMIO64;
pub use document::Document;
pub(crate) use document::MAX_TEXT;
pub use error::ParseError;
pub use model::*;
