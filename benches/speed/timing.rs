//! How time is taken on a machine on which others work, too: what is compared runs in turns, many times over, and of
//! each the runs that nothing disturbed count.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Of many times, one that few runs beat: the machine's noise only ever adds.
pub(crate) fn undisturbed(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 10]
}

/// Seconds that each of these takes, run in turns.
pub(crate) fn in_turns(works: &mut [&mut dyn FnMut()]) -> Vec<f64> {
    const TURNS: usize = 60;
    let batches: Vec<u32> = works.iter_mut().map(|work| batch(*work)).collect();
    let mut times = vec![Vec::with_capacity(TURNS); works.len()];
    for _ in 0..TURNS {
        for ((work, batch), times) in works.iter_mut().zip(&batches).zip(&mut times) {
            let start = Instant::now();
            (0..*batch).for_each(|_| work());
            times.push(start.elapsed() / *batch);
        }
    }
    times.into_iter().map(|times| undisturbed(times).as_secs_f64()).collect()
}

/// How often in a row takes about two milliseconds.
fn batch(work: &mut dyn FnMut()) -> u32 {
    work();
    let start = Instant::now();
    work();
    let once = start.elapsed().max(Duration::from_nanos(20));
    u32::try_from(Duration::from_millis(2).as_nanos() / once.as_nanos()).unwrap_or(1).clamp(1, 100_000)
}

/// A closure that does a thing and throws its result away where the compiler does not see it.
pub(crate) fn each<T>(work: impl Fn() -> T) -> impl FnMut() {
    move || {
        black_box(work());
    }
}
