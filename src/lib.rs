//! barfit makes passed-through GPUs fit in big virtual machines.
//!
//! One way, no I/O in the middle: a domain XML ([`domain`]) and what the machine has ([`host`], [`catalogue`])
//! become a [`guest`] in numbers; [`layout`] says where the firmware puts every BAR; [`plan`] decides what to
//! change and why; [`rewrite`] makes the change in bytes; [`report`] shows it. A room uses only the rooms that
//! stand before it in this list. The core never prints, never exits, and starts no process.

pub mod units;

mod text;

pub mod catalogue;
pub mod cli;
pub mod deliver;
pub mod domain;
pub mod finding;
pub mod flavor;
pub mod guest;
pub mod host;
pub mod layout;
pub mod plan;
pub mod prove;
pub mod report;
pub mod rewrite;
