//! Bytes into one content coding, piece by piece.

use std::io::{self, Write};

use flate2::write::GzEncoder;
use zstd::stream::raw::CParameter;

use super::super::coding::Coding;

/// What is usual: the next levels cost twice the time for a few per cent.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;
const BROTLI_QUALITY: u32 = 4;

/// How far back is looked, as a power of two in bytes: pages and scripts are not longer, and each
/// response under way holds so much memory.
const ZSTD_WINDOW: u32 = 19;
const BROTLI_WINDOW: u32 = 18;

/// What brotli hands on at once, in bytes.
const BROTLI_OUTPUT: usize = 8 * 1024;

/// One response's compressor.
pub enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Finished,
}

impl Encoder {
    pub fn new(coding: Coding) -> io::Result<Encoder> {
        let out = Vec::new();
        Ok(match coding {
            Coding::Gzip => {
                Encoder::Gzip(GzEncoder::new(out, flate2::Compression::new(GZIP_LEVEL)))
            }
            Coding::Brotli => Encoder::Brotli(Box::new(brotli::CompressorWriter::new(
                out,
                BROTLI_OUTPUT,
                BROTLI_QUALITY,
                BROTLI_WINDOW,
            ))),
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?;
                encoder.set_parameter(CParameter::WindowLog(ZSTD_WINDOW))?;
                Encoder::Zstd(encoder)
            }
        })
    }

    /// Takes all of it. What comes out is added to `out`.
    pub fn write(&mut self, data: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Encoder::Gzip(encoder) => encoder.write_all(data)?,
            Encoder::Brotli(encoder) => encoder.write_all(data)?,
            Encoder::Zstd(encoder) => encoder.write_all(data)?,
            Encoder::Finished => {}
        }
        self.take(out);
        Ok(())
    }

    /// Lets out everything that was written, so that it can be read.
    pub fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Encoder::Gzip(encoder) => encoder.flush()?,
            Encoder::Brotli(encoder) => encoder.flush()?,
            Encoder::Zstd(encoder) => encoder.flush()?,
            Encoder::Finished => {}
        }
        self.take(out);
        Ok(())
    }

    pub fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let rest = match std::mem::replace(self, Encoder::Finished) {
            Encoder::Gzip(encoder) => encoder.finish()?,
            Encoder::Brotli(encoder) => encoder.into_inner(),
            Encoder::Zstd(encoder) => encoder.finish()?,
            Encoder::Finished => Vec::new(),
        };
        out.extend_from_slice(&rest);
        Ok(())
    }

    fn take(&mut self, out: &mut Vec<u8>) {
        let ready = match self {
            Encoder::Gzip(encoder) => encoder.get_mut(),
            Encoder::Brotli(encoder) => encoder.get_mut(),
            Encoder::Zstd(encoder) => encoder.get_mut(),
            Encoder::Finished => return,
        };
        out.extend_from_slice(ready);
        ready.clear();
    }
}

#[cfg(test)]
pub mod tests {
    use std::io::Read as _;

    use super::*;

    pub const ALL: [Coding; 3] = [Coding::Gzip, Coding::Brotli, Coding::Zstd];

    /// What has come so far, decoded; it need not be whole.
    pub fn decoded(coding: Coding, mut data: &[u8]) -> Vec<u8> {
        let mut reader: Box<dyn io::Read> = match coding {
            Coding::Gzip => Box::new(flate2::read::GzDecoder::new(&mut data)),
            Coding::Brotli => Box::new(brotli::Decompressor::new(&mut data, 4096)),
            Coding::Zstd => Box::new(zstd::stream::read::Decoder::new(&mut data).unwrap()),
        };
        let (mut out, mut piece) = (Vec::new(), [0; 1000]);
        while let Ok(length @ 1..) = reader.read(&mut piece) {
            out.extend_from_slice(&piece[..length]);
        }
        out
    }

    #[test]
    fn what_was_flushed_can_be_read_and_the_end_is_whole() {
        for coding in ALL {
            let mut encoder = Encoder::new(coding).unwrap();
            let mut out = Vec::new();
            let mut all = Vec::new();
            for number in 0..100 {
                let line = format!("line {number} of a text that repeats itself\n");
                all.extend_from_slice(line.as_bytes());
                encoder.write(line.as_bytes(), &mut out).unwrap();
                if number % 10 == 0 {
                    encoder.flush(&mut out).unwrap();
                    assert!(decoded(coding, &out) == all, "{coding:?} {number}");
                }
            }
            encoder.finish(&mut out).unwrap();
            assert!(decoded(coding, &out) == all, "{coding:?}");
            assert!(out.len() < all.len() / 2, "{coding:?} {}", out.len());
        }
    }
}
