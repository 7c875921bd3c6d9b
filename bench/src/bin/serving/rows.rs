//! What is measured at full load.

use perennial_bench::load::{Pace, Protocol};
use perennial_bench::upstream::{HUNDRED_MEBIBYTES, MEBIBYTE, SMALL};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throughput {
    Handshakes,
    Resumed,
    Http1,
    Http2,
    Mebibyte,
    HundredMebibytes,
}

impl Throughput {
    pub const ALL: [Throughput; 6] = [
        Throughput::Handshakes,
        Throughput::Resumed,
        Throughput::Http1,
        Throughput::Http2,
        Throughput::Mebibyte,
        Throughput::HundredMebibytes,
    ];

    /// The word for `--rows`.
    pub fn word(self) -> &'static str {
        match self {
            Throughput::Handshakes => "handshakes",
            Throughput::Resumed => "resumed",
            Throughput::Http1 => "h1",
            Throughput::Http2 => "h2",
            Throughput::Mebibyte => "1m",
            Throughput::HundredMebibytes => "100m",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Throughput::Handshakes => "full handshakes, one request each",
            Throughput::Resumed => "resumed handshakes, one request each",
            Throughput::Http1 => "h1 requests, keep-alive, 100 bytes",
            Throughput::Http2 => "h2 requests, 100 bytes",
            Throughput::Mebibyte => "h1, bodies of 1 MiB",
            Throughput::HundredMebibytes => "h1, bodies of 100 MiB",
        }
    }

    /// Rows about bodies count GiB instead of requests.
    pub fn is_bulk(self) -> bool {
        matches!(self, Throughput::Mebibyte | Throughput::HundredMebibytes)
    }

    pub fn protocol(self) -> Protocol {
        match self {
            Throughput::Http2 => Protocol::Http2,
            _ => Protocol::Http1,
        }
    }

    pub fn path(self) -> &'static str {
        match self {
            Throughput::Mebibyte => MEBIBYTE,
            Throughput::HundredMebibytes => HUNDRED_MEBIBYTES,
            _ => SMALL,
        }
    }

    /// Connections for each core of the server.
    pub fn connections(self) -> usize {
        match self {
            Throughput::Handshakes | Throughput::Resumed => 32,
            Throughput::Http1 => 64,
            Throughput::Http2 | Throughput::Mebibyte => 8,
            Throughput::HundredMebibytes => 4,
        }
    }

    pub fn pace(self) -> Pace {
        match self {
            Throughput::Handshakes | Throughput::Resumed => Pace::Churn,
            Throughput::Http2 => Pace::Closed { streams: 16 },
            _ => Pace::Closed { streams: 1 },
        }
    }
}
