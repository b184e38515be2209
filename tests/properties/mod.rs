//! What must be true of everything that barfit reads, whatever stands in it: one function a kind of input.
//!
//! The fuzz targets in `fuzz/` feed these functions with what libFuzzer invents, `tests/corpus.rs` with what it has
//! kept. None may panic; a property that does not hold is a panic with the reason. Time and memory are bounded from
//! outside, by libFuzzer's limits and by that test.

mod argv;
mod kept;
mod made;
pub(crate) mod promise;
mod spelling;
mod texts;

/// Holds for any bytes, or panics.
pub(crate) type Property = fn(&[u8]);

/// The kinds of input by name, as in `fuzz/corpus/NAME`.
pub(crate) const TARGETS: [(&str, Property); 7] = [
    ("argv", argv::argv),
    ("dmesg", texts::dmesg),
    ("domain_structured", made::domain_structured),
    ("domain_xml", promise::domain_xml),
    ("host_file", texts::host_file),
    ("plan_file", texts::plan_file),
    ("policy", texts::policy),
];

/// The property of a kind of input.
#[allow(dead_code, reason = "the test takes them all")]
pub(crate) fn of(name: &str) -> Property {
    TARGETS.iter().find(|(target, _)| *target == name).expect("a target").1
}
