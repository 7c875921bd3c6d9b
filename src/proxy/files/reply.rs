//! An open file and a question -> the head of the answer and what follows it. What is small is read
//! at once and is an answer like any other.

use std::io::Write as _;

use bytes::Bytes;
use http::StatusCode;
use time::OffsetDateTime;

use super::body::{Body, File, Piece};
use super::conditions::{Current, Verdict};
use super::lookup::Found;
use super::range::{Ranges, Span};
use super::{FileError, Question};
use crate::message::ResponseHead;
use crate::proxy::respond::Answer;

/// What there is to say.
pub enum Reply {
    Answer(Answer),
    File(File),
    Missing,
    Directory,
}

/// What is read at once, in bytes: the page, the style sheet, the script.
const SMALL: u64 = 64 * 1024;

/// Blocks where it reads what is small.
pub fn reply(found: Found, question: &Question, now: OffsetDateTime) -> Result<Reply, FileError> {
    let etag = etag(&found);
    // RFC 9110 section 8.8.2.1: nothing was modified after it was sent.
    let modified = found.modified.min(now).truncate_to_second();
    let verdict = question.conditions.judge(&Current {
        etag: &etag,
        modified,
        size: found.size,
        now,
    });
    let (status, ranges) = match verdict {
        Verdict::Failed => {
            return Ok(Reply::Answer(Answer::failure(
                StatusCode::PRECONDITION_FAILED,
            )));
        }
        Verdict::NotModified => (StatusCode::NOT_MODIFIED, Ranges::All),
        Verdict::Send(Ranges::Unsatisfiable) => {
            return Ok(Reply::Answer(unsatisfiable(found.size)));
        }
        Verdict::Send(Ranges::All) => (StatusCode::OK, Ranges::All),
        Verdict::Send(ranges) => (StatusCode::PARTIAL_CONTENT, ranges),
    };
    let mut head = head(status, &found, &etag, modified, now);
    if status == StatusCode::NOT_MODIFIED {
        let body = Bytes::new();
        return Ok(Reply::Answer(Answer { head, body }));
    }
    let pieces = pieces(&mut head, &ranges, &found);
    let length: u64 = pieces.iter().map(Piece::length).sum();
    head.fields
        .push(b"Content-Length", length.to_string().as_bytes());
    let body = Body::new(found.file, pieces);
    Ok(if question.is_head {
        let body = Bytes::new();
        Reply::Answer(Answer { head, body })
    } else if length <= SMALL {
        let body = body.read_all()?;
        Reply::Answer(Answer { head, body })
    } else {
        Reply::File(File { head, body, length })
    })
}

fn head(
    status: StatusCode,
    found: &Found,
    etag: &str,
    modified: OffsetDateTime,
    now: OffsetDateTime,
) -> ResponseHead {
    let mut head = ResponseHead::new(status);
    let fields = &mut head.fields;
    fields.push(b"Date", httpdate::fmt_http_date(now.into()).as_bytes());
    fields.push(b"ETag", etag.as_bytes());
    let modified = httpdate::fmt_http_date(modified.into());
    fields.push(b"Last-Modified", modified.as_bytes());
    if let Some(vary) = found.vary {
        fields.push(b"Vary", vary.as_bytes());
    }
    if status == StatusCode::NOT_MODIFIED {
        return head;
    }
    fields.push(b"Accept-Ranges", b"bytes");
    if let Some(coding) = found.coding {
        fields.push(b"Content-Encoding", coding.as_str().as_bytes());
    }
    head
}

/// RFC 9110 section 8.8.3: another content has another size or another time, to the nanosecond, and
/// another coding is another tag.
fn etag(found: &Found) -> String {
    let (size, time) = (found.size, found.modified.unix_timestamp_nanos());
    match found.coding {
        Some(coding) => format!("\"{size:x}-{time:x}-{}\"", coding.as_str()),
        None => format!("\"{size:x}-{time:x}\""),
    }
}

fn unsatisfiable(size: u64) -> Answer {
    let mut answer = Answer::failure(StatusCode::RANGE_NOT_SATISFIABLE);
    let range = format!("bytes */{size}");
    answer.head.fields.push(b"Content-Range", range.as_bytes());
    answer
}

/// What is sent of the file, and what the head says about that.
fn pieces(head: &mut ResponseHead, ranges: &Ranges, found: &Found) -> Vec<Piece> {
    let (fields, size) = (&mut head.fields, found.size);
    match ranges {
        Ranges::All | Ranges::Unsatisfiable => {
            fields.push(b"Content-Type", found.content_type.as_bytes());
            let length = size;
            vec![Piece::Span(Span { start: 0, length })]
        }
        Ranges::One(span) => {
            fields.push(b"Content-Type", found.content_type.as_bytes());
            fields.push(b"Content-Range", content_range(*span, size).as_bytes());
            vec![Piece::Span(*span)]
        }
        Ranges::Several(spans) => {
            // RFC 2046 section 5.1.1: what no part has in it; so many random bits are in none.
            let boundary = format!("{:032x}", rand::random::<u128>());
            let media = format!("multipart/byteranges; boundary={boundary}");
            fields.push(b"Content-Type", media.as_bytes());
            let parts = spans.iter().flat_map(|span| {
                let text = part_head(&boundary, &found.content_type, *span, size);
                [Piece::Text(text), Piece::Span(*span)]
            });
            let end = Piece::Text(format!("\r\n--{boundary}--\r\n").into());
            parts.chain([end]).collect()
        }
    }
}

/// RFC 9110 section 14.6.
fn part_head(boundary: &str, content_type: &str, span: Span, size: u64) -> Bytes {
    let mut text = Vec::new();
    let range = content_range(span, size);
    // A vector takes everything.
    let _ = write!(
        text,
        "\r\n--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {range}\r\n\r\n"
    );
    text.into()
}

fn content_range(Span { start, length }: Span, size: u64) -> String {
    format!("bytes {start}-{}/{size}", start + length - 1)
}
