//! Inputs in parts. Each part but the last begins with its length, so that a mutation of one
//! leaves the others as they are.

/// Takes one part off an input: two bytes of length, then as much as is there.
pub fn part<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let Some((length, tail)) = rest.split_at_checked(2) else {
        return std::mem::take(rest);
    };
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    let (part, tail) = tail.split_at(length.min(tail.len()));
    *rest = tail;
    part
}

/// Takes one byte off an input; 0 if there is none.
pub fn byte(rest: &mut &[u8]) -> u8 {
    let Some((&first, tail)) = rest.split_first() else {
        return 0;
    };
    *rest = tail;
    first
}

/// An input that begins with a byte and goes on with these parts.
pub fn join<const PARTS: usize>(first: u8, parts: [&[u8]; PARTS]) -> Vec<u8> {
    let mut input = vec![first];
    for (number, part) in parts.iter().enumerate() {
        if number + 1 < parts.len() {
            let length = u16::try_from(part.len()).unwrap();
            input.extend(length.to_be_bytes());
        }
        input.extend_from_slice(part);
    }
    input
}
