//! HTTP messages as they stand on the wire of HTTP/1.1 (RFC 9110, RFC 9112): heads, their fields, and
//! where bodies end. Text in, values out: it does no I/O, and what can be read in two ways it refuses.
//!
//! Fields stay where they stood in the text, in their order and with the case of their names: a
//! proxy passes most of them on unread.

mod body;
mod fields;
mod head;
mod parse;
#[cfg(test)]
mod tests;

pub use body::{BodyError, BodyReader, Step, may_trail, write_chunk, write_last_chunk};
pub use fields::{Field, Fields, Known, write_field, write_length};
pub use head::{Framing, RequestHead, ResponseHead};
pub use parse::{HeadEnd, HeadError, Limits};
