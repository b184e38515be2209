//! Answers shown: for programs as JSON, for people as text. Pure: returns values and strings, prints nothing.
//!
//! Knows an [`Answer`](crate::plan::Answer) and decides nothing: every number here was computed elsewhere. Sizes and
//! addresses are hexadecimal strings in JSON, hexadecimal and binary units for people.

mod catalogue;
mod host;
mod human;
mod json;
mod map;
mod paint;
mod placement;
mod size;
mod table;

pub use self::catalogue::{catalogue_json, catalogue_text};
pub use self::host::host_text;
pub use self::human::{Detail, SummaryRow, check_text, headline, summary_text};
pub use self::json::{Check, SCHEMA};
pub use self::paint::Paint;
pub use self::size::{SizeRow, size_text};
