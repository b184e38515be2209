//! Replays what the fuzz targets have kept, against the same properties: inputs that once broke something, and those
//! that between them reach every line that fuzzing reached.

mod properties;

use std::fs;
use std::path::Path;
use std::time::Duration;

/// No input may take the processor for longer, even without optimisation. Each is judged a dozen times.
const LONGEST: Duration = Duration::from_secs(10);
/// Peak memory of all of it, in KiB.
const MOST_MEMORY: u64 = 512 << 10;

#[test]
fn every_input_holds() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut inputs = 0;
    for (name, property) in properties::TARGETS {
        let folder = corpora.join(name);
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let before = inputs;
        for entry in entries {
            let path = entry.expect("an entry").path();
            let bytes = fs::read(&path).expect("an input");
            // What a panic of the property is about.
            let told = Told(&path);
            let start = on_processor();
            property(&bytes);
            let took = on_processor() - start;
            assert!(took < LONGEST, "{} took {took:?}", path.display());
            std::mem::forget(told);
            inputs += 1;
        }
        assert!(inputs > before, "{} is empty", folder.display());
    }
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < MOST_MEMORY, "{inputs} inputs took {peak} KiB");
}

/// How long this thread has had the processor: on a busy machine the clock says nothing.
fn on_processor() -> Duration {
    let times = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    Duration::from_nanos(times.split(' ').next().and_then(|time| time.parse().ok()).expect("nanoseconds"))
}

/// Names a file when a property does not hold for it.
struct Told<'a>(&'a Path);

#[allow(clippy::print_stderr, reason = "said only when a property fails")]
impl Drop for Told<'_> {
    fn drop(&mut self) {
        eprintln!("in {}", self.0.display());
    }
}
