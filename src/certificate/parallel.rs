//! The same work on many items, on all cores. For bulk loads; a few items are done on the spot.

/// Fewer items than this are not worth starting threads for.
const WORTHWHILE: usize = 32;

/// Applies `work` to each item, in parallel where there are many. The order is kept.
pub fn map<T, R>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R>
where
    T: Send,
    R: Send,
{
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if items.len() < WORTHWHILE || threads == 1 {
        return items.into_iter().map(work).collect();
    }
    let share = items.len().div_ceil(threads);
    let mut shares: Vec<Vec<T>> = Vec::with_capacity(threads);
    let mut items = items.into_iter();
    loop {
        let part: Vec<T> = items.by_ref().take(share).collect();
        if part.is_empty() {
            break;
        }
        shares.push(part);
    }
    std::thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = shares
            .into_iter()
            .map(|part| scope.spawn(move || part.into_iter().map(work).collect::<Vec<R>>()))
            .collect();
        running.into_iter().flat_map(join).collect()
    })
}

/// Works on one batch after the other, as [`map`] does, and hands the results on in that order.
/// While `take` is busy with one, the next is worked on already. `next` gives the batches; an empty
/// one is the end. Both get the `state`.
pub fn pipeline<S, T, R>(
    state: &mut S,
    mut next: impl FnMut(&mut S) -> Vec<T>,
    work: impl Fn(T) -> R + Sync,
    mut take: impl FnMut(&mut S, Vec<R>),
) where
    T: Send,
    R: Send,
{
    let work = &work;
    let mut results = map(next(state), work);
    std::thread::scope(|scope| {
        while !results.is_empty() {
            let batch = next(state);
            let ahead = (!batch.is_empty()).then(|| scope.spawn(move || map(batch, work)));
            take(state, std::mem::take(&mut results));
            results = ahead.map_or_else(Vec::new, join);
        }
    });
}

fn join<R>(thread: std::thread::ScopedJoinHandle<'_, R>) -> R {
    // A panic in the work is the caller's panic.
    let panicked = |panic| std::panic::resume_unwind(panic);
    thread.join().unwrap_or_else(panicked)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_order_is_kept() {
        for count in [0, 1, 31, 32, 33, 1000] {
            let doubled = super::map((0..count).collect(), |n| 2 * n);
            assert_eq!(doubled, (0..count).map(|n| 2 * n).collect::<Vec<_>>());
        }
    }
    #[test]
    fn batches_come_through_in_their_order_each_once() {
        for sizes in [&[][..], &[1], &[40, 1, 100], &[3; 20]] {
            let mut seen: Vec<usize> = Vec::new();
            let mut sizes = sizes.iter();
            let mut given = 0;
            let next = |_: &mut Vec<usize>| {
                let size = sizes.next().copied().unwrap_or(0);
                let batch: Vec<usize> = (given..given + size).collect();
                given += size;
                batch
            };
            super::pipeline(&mut seen, next, |n| n, |seen, batch| seen.extend(batch));
            assert_eq!(seen, (0..given).collect::<Vec<_>>());
        }
    }
}
