//! What to change so that every device is placed, and why: policy and layout in, a [`Plan`] out. Pure.

mod change;

pub use change::*;
