//! The same work on many inputs: a thread for each core, results in the order of the inputs, memory that does not grow
//! with their number.

use std::num::NonZero;
use std::sync::mpsc::sync_channel;
use std::thread;

/// Fewer inputs than this are not worth a thread.
const FEWEST: usize = 8;
/// Results of one thread that may wait for those before them: enough to even out what takes longer.
const WAITING: usize = 64;

/// Does `work` on every item, and hands the results to `each` in the order of the items.
pub(super) fn in_order<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
    mut each: impl FnMut(R),
) {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cores.min(items.len() / FEWEST);
    if threads < 2 {
        items.iter().map(work).for_each(each);
        return;
    }
    thread::scope(|scope| {
        let work = &work;
        // Item N is the matter of thread N modulo their number, so that who is next never has to be agreed on.
        let start = |first: usize| {
            let (send, receive) = sync_channel(WAITING);
            let run = move || {
                let mut results = items.iter().skip(first).step_by(threads).map(work);
                results.try_for_each(|result| send.send(result))
            };
            thread::Builder::new().spawn_scoped(scope, run).ok().map(|_| receive)
        };
        let threads: Vec<_> = (0..threads).map(start).collect();
        for (at, item) in items.iter().enumerate() {
            match &threads[at % threads.len()] {
                Some(results) => match results.recv() {
                    Ok(result) => each(result),
                    // It has panicked, and so will the scope.
                    Err(_) => return,
                },
                // The system has no thread left.
                None => each(work(item)),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        for count in [0, 1, 7, 16, 17, 1000] {
            let items: Vec<usize> = (0..count).collect();
            let mut seen = Vec::new();
            let slowly = |item: &usize| {
                // The first ones take longest.
                thread::sleep(std::time::Duration::from_micros(if item.is_multiple_of(97) {
                    2000
                } else {
                    1
                }));
                item * 2
            };
            in_order(&items, slowly, |result| seen.push(result));
            assert_eq!(seen, items.iter().map(|item| item * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    #[should_panic(expected = "a scoped thread panicked")]
    fn a_panic_is_not_lost() {
        let items: Vec<usize> = (0..100).collect();
        in_order(&items, |item| assert!(*item != 50, "as meant"), |()| {});
    }
}
