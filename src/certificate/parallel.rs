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
        running
            .into_iter()
            .flat_map(|thread| match thread.join() {
                Ok(results) => results,
                // A panic in the work is the caller's panic.
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
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
}
