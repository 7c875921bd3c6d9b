//! Just enough HTTP/1.1: one request under way, answers with a Content-Length.

/// A request as a browser or curl would send it, in short.
pub fn request(name: &str, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {name}\r\nUser-Agent: bench/1\r\nAccept: */*\r\n\r\n")
        .into_bytes()
}

/// Where in an answer the bytes are.
#[derive(Default)]
pub struct Reader {
    head: Vec<u8>,
    body_left: Option<u64>,
}

impl Reader {
    /// Takes what came, and says how much of it was body and whether the answer is complete.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(u64, bool), String> {
        let body = match self.body_left {
            Some(_) => bytes.len(),
            None => match self.receive_head(bytes)? {
                Some(body) => body,
                None => return Ok((0, false)),
            },
        } as u64;
        let left = self.body_left.unwrap_or(0);
        if body > left {
            return Err("more came than was asked for".to_owned());
        }
        let complete = body == left;
        self.body_left = (!complete).then_some(left - body);
        Ok((body, complete))
    }

    /// The number of bytes after the head, once it is complete.
    fn receive_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        let Some(end) = find(&self.head, b"\r\n\r\n") else {
            return Ok(None);
        };
        self.body_left = Some(content_length(&self.head[..end])?);
        self.head.clear();
        Ok(Some(before + bytes.len() - end - 4))
    }
}

fn content_length(head: &[u8]) -> Result<u64, String> {
    let text = || String::from_utf8_lossy(head);
    if !head.starts_with(b"HTTP/1.1 200") {
        return Err(format!("status: {}", text()));
    }
    for line in head.split(|byte| *byte == b'\n') {
        const NAME: &[u8] = b"content-length:";
        if line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME) {
            let value = line[NAME.len()..].trim_ascii();
            return std::str::from_utf8(value)
                .ok()
                .and_then(|value| value.parse().ok())
                .ok_or_else(|| format!("length: {}", text()));
        }
    }
    Err(format!("no length: {}", text()))
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|part| part == wanted)
}
