//! HTTP/1.1 messages as bytes (RFC 9112): sent as the test writes them, read without any leniency.
//! What a peer of ours must not have to guess about is an error here.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::wait::SOON;

/// One end of a connection, over TLS or not.
pub struct Wire<S> {
    pub stream: S,
    buffer: Vec<u8>,
    /// Everything that was read since [`Wire::rewind`].
    tape: Vec<u8>,
    end: Option<End>,
}

/// How the other side stopped sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// An orderly end: FIN, after a `close_notify` where there is TLS.
    Closed,
    /// Anything else: a reset, or TLS cut off.
    Broken(String),
}

/// Start line and fields of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    pub start: String,
    /// Names in lower case, values trimmed, both as Latin-1, in order.
    pub fields: Vec<(String, String)>,
}

/// A message, as far as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub head: Head,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Why it is not whole, if it is not.
    pub cut: Option<String>,
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub fn new(stream: S) -> Wire<S> {
        Wire {
            stream,
            buffer: Vec::new(),
            tape: Vec::new(),
            end: None,
        }
    }

    /// As it is, and at once.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), String> {
        let sent = async {
            self.stream.write_all(bytes.as_ref()).await?;
            self.stream.flush().await
        };
        match tokio::time::timeout(SOON, sent).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("nothing was taken for {SOON:?}")),
        }
    }

    /// Says that nothing more will be sent.
    pub async fn finish(&mut self) {
        // The other side may have closed first.
        let _ = self.stream.shutdown().await;
    }

    /// Waits for more bytes. `Ok(false)`: there are none any more.
    async fn fill(&mut self) -> Result<bool, String> {
        match tokio::time::timeout(SOON, self.read_more()).await {
            Ok(more) => Ok(more),
            Err(_) => Err(format!("nothing came for {SOON:?}; {}", self.unread())),
        }
    }

    async fn read_more(&mut self) -> bool {
        if self.end.is_some() {
            return false;
        }
        let mut part = [0; 16 * 1024];
        match self.stream.read(&mut part).await {
            Ok(0) => self.end = Some(End::Closed),
            Ok(length) => {
                self.buffer.extend_from_slice(&part[..length]);
                self.tape.extend_from_slice(&part[..length]);
            }
            Err(error) => self.end = Some(End::Broken(error.to_string())),
        }
        self.end.is_none()
    }

    /// What has been used since the last call, byte for byte.
    pub fn rewind(&mut self) -> Vec<u8> {
        let used = self.tape.len() - self.buffer.len();
        self.tape.drain(..used).collect()
    }

    fn unread(&self) -> String {
        format!("unread: {:?}", String::from_utf8_lossy(&self.buffer))
    }

    /// Everything up to and with `end`.
    pub async fn until(&mut self, end: &[u8]) -> Result<Vec<u8>, String> {
        loop {
            if let Some(at) = find(&self.buffer, end) {
                return Ok(self.buffer.drain(..at + end.len()).collect());
            }
            if !self.fill().await? {
                let end = self.end.as_ref();
                return Err(format!("ended early ({end:?}); {}", self.unread()));
            }
        }
    }

    pub async fn exactly(&mut self, length: usize) -> Result<Vec<u8>, String> {
        while self.buffer.len() < length {
            if !self.fill().await? {
                let (end, has) = (self.end.as_ref(), self.buffer.len());
                return Err(format!("ended ({end:?}) after {has} of {length} bytes"));
            }
        }
        Ok(self.buffer.drain(..length).collect())
    }

    /// Everything until the other side stops sending, and how it did.
    pub async fn rest(&mut self) -> Result<(Vec<u8>, End), String> {
        while self.fill().await? {}
        let end = self.end.clone().unwrap_or(End::Closed);
        Ok((std::mem::take(&mut self.buffer), end))
    }

    /// Whether something comes within `time`, be it the end.
    pub async fn hears_within(&mut self, time: Duration) -> bool {
        !self.buffer.is_empty() || tokio::time::timeout(time, self.read_more()).await.is_ok()
    }

    pub async fn head(&mut self) -> Result<Head, String> {
        let bytes = self.until(b"\r\n\r\n").await?;
        Head::parse(&bytes)
    }

    /// A request with its body.
    pub async fn request(&mut self) -> Result<Message, String> {
        let head = self.head().await?;
        let framing = head.request_framing()?;
        self.message(head, framing).await
    }

    /// The final response; interim ones go into `interim`.
    pub async fn response_after(
        &mut self,
        method: &str,
        interim: &mut Vec<Head>,
    ) -> Result<Message, String> {
        loop {
            let head = self.head().await?;
            match head.status()? {
                101 => return self.message(head, Framing::Length(0)).await,
                100..200 => interim.push(head),
                _ => {
                    let framing = head.response_framing(method)?;
                    return self.message(head, framing).await;
                }
            }
        }
    }

    /// The final response to a request with this method.
    pub async fn response(&mut self, method: &str) -> Result<Message, String> {
        self.response_after(method, &mut Vec::new()).await
    }

    /// The body that follows `head`; one that is cut off is no error, but says so.
    pub async fn message(&mut self, head: Head, framing: Framing) -> Result<Message, String> {
        let mut message = Message {
            head,
            body: Vec::new(),
            trailers: Vec::new(),
            cut: None,
        };
        let read = match framing {
            Framing::Length(length) => self.length_body(length, &mut message.body).await,
            Framing::Chunked => self.chunked_body(&mut message).await,
            Framing::UntilClose => self.rest().await.and_then(|(rest, end)| {
                message.body = rest;
                match end {
                    End::Closed => Ok(()),
                    End::Broken(why) => Err(why),
                }
            }),
        };
        message.cut = read.err();
        Ok(message)
    }

    async fn length_body(&mut self, length: usize, body: &mut Vec<u8>) -> Result<(), String> {
        let result = self.exactly(length).await;
        match result {
            Ok(bytes) => *body = bytes,
            Err(why) => {
                *body = std::mem::take(&mut self.buffer);
                return Err(why);
            }
        }
        Ok(())
    }

    async fn chunked_body(&mut self, message: &mut Message) -> Result<(), String> {
        loop {
            let chunk = self.chunk().await?;
            if chunk.is_empty() {
                break;
            }
            message.body.extend_from_slice(&chunk);
        }
        loop {
            let line = self.until(b"\r\n").await?;
            if line == b"\r\n" {
                return Ok(());
            }
            message.trailers.push(parse_field(&line[..line.len() - 2])?);
        }
    }

    /// The data of one chunk; empty for the last, whose trailers are still to be read.
    pub async fn chunk(&mut self) -> Result<Vec<u8>, String> {
        let line = self.until(b"\r\n").await?;
        let digits = std::str::from_utf8(&line[..line.len() - 2]).map_err(|e| e.to_string())?;
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let length = usize::from_str_radix(digits, 16).ok().filter(|_| plain);
        let length = length.ok_or_else(|| format!("no chunk size: {digits:?}"))?;
        if length == 0 {
            return Ok(Vec::new());
        }
        let mut data = self.exactly(length + 2).await?;
        match data.split_off(length) == b"\r\n" {
            true => Ok(data),
            false => Err("a chunk without its CRLF".to_owned()),
        }
    }
}

impl Head {
    /// With the empty line at the end.
    fn parse(bytes: &[u8]) -> Result<Head, String> {
        let shown = || String::from_utf8_lossy(bytes).into_owned();
        let bytes = bytes.strip_suffix(b"\r\n\r\n").ok_or_else(shown)?;
        let text = latin1(bytes);
        let mut lines = text.split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        if start.contains(['\r', '\n', '\0', '\t']) {
            return Err(format!("a malformed start line: {start:?}"));
        }
        let fields = lines.map(|line| parse_field(&to_bytes(line)));
        Ok(Head {
            start,
            fields: fields.collect::<Result<_, _>>()?,
        })
    }

    pub fn all<'h>(&'h self, name: &str) -> Vec<&'h str> {
        let matching = self.fields.iter().filter(|(given, _)| given == name);
        matching.map(|(_, value)| value.as_str()).collect()
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    pub fn status(&self) -> Result<u16, String> {
        let mut words = self.start.splitn(3, ' ');
        let version = words.next();
        let status = words.next().and_then(|digits| digits.parse().ok());
        status
            .filter(|_| matches!(version, Some("HTTP/1.1" | "HTTP/1.0" | "HTTP/2")))
            .ok_or_else(|| format!("no status line: {:?}", self.start))
    }

    /// Method, target and version.
    pub fn request_line(&self) -> Result<(&str, &str, &str), String> {
        let words: Vec<&str> = self.start.split(' ').collect();
        match words[..] {
            [method, target, version @ ("HTTP/1.1" | "HTTP/1.0")]
                if !method.is_empty() && !target.is_empty() =>
            {
                Ok((method, target, version))
            }
            _ => Err(format!("no request line: {:?}", self.start)),
        }
    }

    /// RFC 9112 section 6, and an error for everything that it calls invalid or unwise.
    pub fn request_framing(&self) -> Result<Framing, String> {
        let (_, _, version) = self.request_line()?;
        let hosts = self.all("host").len();
        if hosts > 1 || (hosts == 0 && version == "HTTP/1.1") {
            return Err(format!("{hosts} Host fields"));
        }
        Ok(self.framing()?.unwrap_or(Framing::Length(0)))
    }

    pub fn response_framing(&self, method: &str) -> Result<Framing, String> {
        let framing = self.framing()?;
        match self.status()? {
            100..200 | 204 | 304 => Ok(Framing::Length(0)),
            _ if method == "HEAD" => Ok(Framing::Length(0)),
            _ => Ok(framing.unwrap_or(Framing::UntilClose)),
        }
    }

    fn framing(&self) -> Result<Option<Framing>, String> {
        let codings = self.all("transfer-encoding");
        let lengths = self.all("content-length");
        match (&codings[..], &lengths[..]) {
            ([], []) => Ok(None),
            (["chunked"], []) => Ok(Some(Framing::Chunked)),
            ([], [length]) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
                let length = length.parse().map_err(|_| format!("length {length:?}"))?;
                Ok(Some(Framing::Length(length)))
            }
            _ => Err(format!("ambiguous framing: {codings:?}, {lengths:?}")),
        }
    }
}

impl Message {
    pub fn status(&self) -> u16 {
        self.head.status().expect("a status line")
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Method and target.
    pub fn asked(&self) -> (&str, &str) {
        let (method, target, _) = self.head.request_line().expect("a request line");
        (method, target)
    }

    #[track_caller]
    pub fn assert_whole(self) -> Message {
        assert_eq!(self.cut, None, "{self:?}");
        self
    }
}

fn parse_field(line: &[u8]) -> Result<(String, String), String> {
    let text = latin1(line);
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| format!("a field line without a colon: {text:?}"))?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!("no field name: {text:?}"));
    }
    if value.contains(['\r', '\n', '\0']) {
        return Err(format!("a control character: {text:?}"));
    }
    let value = value.trim_matches([' ', '\t']);
    Ok((name.to_ascii_lowercase(), value.to_owned()))
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

fn to_bytes(text: &str) -> Vec<u8> {
    text.chars().map(|char| char as u8).collect()
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|part| part == wanted)
}
