//! ClientHellos of TLS 1.2 (RFC 5246 section 7.4.1.2), with any bytes as server name and protocols.

/// TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
const CIPHER: [u8; 2] = [0xc0, 0x2b];

/// What begins with its length, in so many bytes.
fn sized(bytes: usize, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let mut sized = length[length.len() - bytes..].to_vec();
    sized.extend_from_slice(content);
    sized
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &sized(2, content)].concat()
}

/// A record with a ClientHello. `protocols` is the whole list of ALPN (RFC 7301) without its length.
pub fn record(server_name: Option<&[u8]>, protocols: Option<&[u8]>) -> Vec<u8> {
    let mut extensions = Vec::new();
    if let Some(name) = server_name {
        let entry = [&[0][..], &sized(2, name)].concat();
        extensions.extend(extension(0, &sized(2, &entry)));
    }
    // P-256 and ECDSA with it.
    extensions.extend(extension(10, b"\x00\x02\x00\x17"));
    extensions.extend(extension(13, b"\x00\x02\x04\x03"));
    if let Some(protocols) = protocols {
        extensions.extend(extension(16, &sized(2, protocols)));
    }
    let hello = [
        &b"\x03\x03"[..],
        &[7; 32],
        &sized(1, b""),
        &sized(2, &CIPHER),
        &sized(1, b"\x00"),
        &sized(2, &extensions),
    ]
    .concat();
    let message = [&[1][..], &sized(3, &hello)].concat();
    [&b"\x16\x03\x01"[..], &sized(2, &message)].concat()
}
