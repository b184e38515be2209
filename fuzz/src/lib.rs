//! The properties of `tests/properties`, for fuzz targets.

#[path = "../../tests/properties/mod.rs"]
mod properties;

macro_rules! targets {
    ($($name:ident)+) => {
        $(
            /// The property of this kind of input.
            pub fn $name(bytes: &[u8]) {
                properties::of(stringify!($name))(bytes);
            }
        )+
    };
}

targets! { argv dmesg domain_structured domain_xml host_file plan_file policy }
