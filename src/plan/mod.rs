//! What to change so that every device is placed, and why: policy and layout in, an [`Answer`] out. Pure.

mod answer;
mod change;
mod decide;
mod explain;
mod judge;
mod policy;

pub use answer::{Answer, Plan, Request, Verdict, answer};
pub use change::*;
pub use judge::Placement;
pub use policy::{Bits, FwCfg, Mode, Policy, PolicyError, Settings};
