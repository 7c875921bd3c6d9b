//! Which exchanges may be silent as long as they like: those whose answers come when something
//! happens.

use crate::message::{Fields, Known};

/// Whether the request is for server-sent events, or a gRPC call.
pub fn is_patient(fields: &Fields) -> bool {
    let events = fields
        .all(Known::Accept)
        .any(|value| contains(value, b"text/event-stream"));
    let grpc = fields.all(Known::ContentType).any(|value| {
        value
            .get(..16)
            .is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc"))
    });
    events || grpc
}

fn contains(value: &[u8], wanted: &[u8]) -> bool {
    value
        .windows(wanted.len())
        .any(|window| window.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_streams_have_none() {
        for (name, value, expected) in [
            ("accept", "text/event-stream", true),
            ("accept", "text/html, Text/Event-Stream;q=0.9", true),
            ("accept", "*/*", false),
            ("content-type", "application/grpc+proto", true),
            ("Content-Type", "application/grpc", true),
            ("content-type", "application/json", false),
        ] {
            let mut fields = Fields::default();
            fields.push(name.as_bytes(), value.as_bytes());
            assert_eq!(is_patient(&fields), expected, "{value}");
        }
    }
}
