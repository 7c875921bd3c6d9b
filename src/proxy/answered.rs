//! The fields of a response on its way to the client: what is about the connection that it came on
//! stays there, and where the body ends is said by whom it concerns.

use http::StatusCode;

use crate::message::{Field, Fields, Known, ResponseHead, write_field};

/// Adds the fields for a client of HTTP/1. Where the body ends and whether the connection does is
/// not among them.
pub fn write_fields(output: &mut Vec<u8>, head: &ResponseHead) {
    for field in passed(&head.fields) {
        write_field(output, field.name, field.value);
    }
    // What a switch of protocols says about the connection is for both, and a 426 has to name what
    // would do (RFC 9110 section 15.5.22).
    let upgrade = [
        StatusCode::SWITCHING_PROTOCOLS,
        StatusCode::UPGRADE_REQUIRED,
    ];
    if upgrade.contains(&head.status) {
        output.extend_from_slice(b"Connection: Upgrade\r\n");
        for protocol in head.fields.all(Known::Upgrade) {
            write_field(output, b"Upgrade", protocol);
        }
    }
}

/// The fields that are for the client, whatever it speaks (RFC 9110 section 7.6.1).
pub fn passed(fields: &Fields) -> impl Iterator<Item = Field<'_>> {
    let nominates = nominates(fields);
    fields.iter().filter(move |field| {
        let known = field.known.is_hop_by_hop() || field.known == Known::ContentLength;
        let named = nominates && fields.lists(Known::Connection, field.name);
        !known && !named
    })
}

/// Whether `Connection` names any field. `close` and `keep-alive` are none.
pub fn nominates(fields: &Fields) -> bool {
    const OPTIONS: [&[u8]; 3] = [b"close", b"keep-alive", b"upgrade"];
    fields.tokens(Known::Connection).any(|token| {
        !OPTIONS
            .iter()
            .any(|option| token.eq_ignore_ascii_case(option))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(status: u16, fields: &[(&str, &str)]) -> String {
        let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap());
        for (name, value) in fields {
            head.fields.push(name.as_bytes(), value.as_bytes());
        }
        let mut output = Vec::new();
        write_fields(&mut output, &head);
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn what_is_about_the_connection_stays_there() {
        let fields = [
            ("Connection", "close, X-Hop"),
            ("Connection", "upgrade,,bad name"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "close"),
            ("Transfer-Encoding", "chunked"),
            ("Content-Length", "5"),
            ("Upgrade", "websocket"),
            ("X-END", "1"),
        ];
        assert_eq!(written(200, &fields), "X-END: 1\r\n");
        let upgrade = "X-END: 1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
        assert_eq!(written(426, &fields), upgrade);
        assert_eq!(written(101, &fields), upgrade);
    }
}
