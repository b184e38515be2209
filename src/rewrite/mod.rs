//! A plan's changes made real: in the bytes of a domain XML ([`rewrite`], [`rewrite_document`]), in the words of a
//! QEMU command line ([`argv`]), and as a diff for people and for `patch` ([`diff`]).
//!
//! Knows where libvirt and QEMU expect each setting and what they refuse; does not know why a setting is wanted, nor
//! anything of the host. The XML is never printed anew: the tree says what a text means, the edits are splices of
//! byte ranges, and a byte outside an edit stays as it is (byte order mark, CRLF, odd quotes, comments, `</d >`).
//! Making the same changes twice equals making them once; without a change the bytes that come out are those that
//! went in.

pub mod argv;
mod command_line;
mod cpu;
pub mod diff;
mod gate;
mod options;
mod place;
mod splice;
mod xml;

pub use xml::{rewrite, rewrite_document};
