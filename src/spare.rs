//! Memory that one request leaves to the next on the same thread. A connection that waits holds
//! none, so that every request would ask the allocator for half a dozen pieces and give them back;
//! most of them find here what another one has left, which costs a tenth of that.

use std::cell::RefCell;
use std::thread::LocalKey;

use bytes::BytesMut;

/// What a buffer for reading has room for, in bytes: most heads, with a small body.
pub const BUFFER_BYTES: usize = 4 * 1024;

/// What grew beyond that, for a large body, goes back to the allocator.
pub const MOST_BYTES: usize = 16 * 1024;

/// How many of a kind a thread leaves lying, which is as many requests as a busy one has under way at
/// once. All kinds together are less than a MiB, most of it never touched.
const MOST_PIECES: usize = 64;

/// What lies there of one kind, the one used last on top.
pub struct Pile<T>(RefCell<Vec<T>>);

impl<T> Pile<T> {
    pub const fn new() -> Pile<T> {
        Pile(RefCell::new(Vec::new()))
    }

    /// `None` where nothing lies, and while the thread ends.
    pub fn take(pile: &'static LocalKey<Pile<T>>) -> Option<T> {
        pile.try_with(|pile| pile.0.borrow_mut().pop()).ok()?
    }

    /// What is too much is dropped.
    pub fn give(pile: &'static LocalKey<Pile<T>>, piece: T) {
        let _ = pile.try_with(|pile| {
            let mut pieces = pile.0.borrow_mut();
            if pieces.len() < MOST_PIECES {
                pieces.push(piece);
            }
        });
    }
}

thread_local! {
    static BUFFERS: Pile<BytesMut> = const { Pile::new() };
    static TEXTS: Pile<Vec<u8>> = const { Pile::new() };
}

/// An empty buffer for reading, with room for [`BUFFER_BYTES`] or more.
pub fn buffer() -> BytesMut {
    Pile::take(&BUFFERS).unwrap_or_else(|| BytesMut::with_capacity(BUFFER_BYTES))
}

/// Takes the buffer's memory, whatever is in it. There is none behind it then.
pub fn give_buffer(buffer: &mut BytesMut) {
    if buffer.capacity() == 0 {
        return;
    }
    let mut buffer = std::mem::take(buffer);
    buffer.clear();
    // Not if somebody else still holds a part of it.
    if buffer.try_reclaim(BUFFER_BYTES) && buffer.capacity() <= MOST_BYTES {
        Pile::give(&BUFFERS, buffer);
    }
}

/// An empty text to be written, with room for some.
pub fn text() -> Vec<u8> {
    Pile::take(&TEXTS).unwrap_or_default()
}

/// The same as [`give_buffer`] for a text.
pub fn give_text(text: &mut Vec<u8>) {
    if (1..=MOST_BYTES).contains(&text.capacity()) {
        let mut text = std::mem::take(text);
        text.clear();
        Pile::give(&TEXTS, text);
    } else {
        *text = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_found_empty() {
        let mut one = buffer();
        one.extend_from_slice(&[7; 3000]);
        let place = one.as_ptr();
        let _ = one.split_to(1000);
        give_buffer(&mut one);
        assert_eq!(one.capacity(), 0);
        let again = buffer();
        assert!(again.is_empty() && again.capacity() >= BUFFER_BYTES);
        assert_eq!(again.as_ptr(), place);

        let mut one = b"secret".to_vec();
        give_text(&mut one);
        assert_eq!(one.capacity(), 0);
        assert!(text().is_empty());
    }

    #[test]
    fn what_somebody_holds_or_is_too_large_is_not_left() {
        let mut one = buffer();
        one.extend_from_slice(b"a body");
        let held = one.split_to(1).freeze();
        give_buffer(&mut one);
        assert!(Pile::take(&BUFFERS).is_none());
        assert_eq!(held, b"a"[..]);

        give_buffer(&mut BytesMut::with_capacity(MOST_BYTES + 1));
        give_text(&mut Vec::with_capacity(MOST_BYTES + 1));
        give_buffer(&mut BytesMut::new());
        give_text(&mut Vec::new());
        assert!(Pile::take(&BUFFERS).is_none());
        assert!(Pile::take(&TEXTS).is_none());
    }

    #[test]
    fn there_is_a_bound() {
        for _ in 0..2 * MOST_PIECES {
            give_text(&mut Vec::with_capacity(10));
        }
        let left = std::iter::from_fn(|| Pile::take(&TEXTS)).count();
        assert_eq!(left, MOST_PIECES);
    }
}
