#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| barfit_fuzz::host_file(bytes));
