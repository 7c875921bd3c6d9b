//! Whatever comes in whatever pieces, to a client that takes it as it likes: the client can read all
//! of it, and nobody works for long.

use std::task::Waker;

use http::StatusCode;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::encoder::tests::{ALL, decoded};
use super::*;

/// Takes what it has room for, and notes what it got.
#[derive(Default)]
struct Taker {
    head: Option<(ResponseHead, Framing)>,
    body: Vec<u8>,
    trailers: Option<Option<Fields>>,
    ended: usize,
    /// `None`: as much as comes.
    room: Option<usize>,
}

impl Client for Taker {
    fn poll_body(
        &mut self,
        _cx: &mut Context<'_>,
        _take: &mut dyn FnMut(&[u8]),
    ) -> Poll<Result<Option<Trailers>, ClientError>> {
        Poll::Ready(Ok(Some(None)))
    }

    fn body_is_read(&self) -> bool {
        true
    }

    fn forgo_body(&mut self) {}

    fn poll_gone(&mut self, _cx: &mut Context<'_>) -> Poll<ClientError> {
        Poll::Pending
    }

    fn send_interim(&mut self, _head: &ResponseHead) -> Result<(), ClientError> {
        Ok(())
    }

    fn send_head(&mut self, head: &ResponseHead, framing: Framing) -> Result<(), ClientError> {
        self.head = Some((head.clone(), framing));
        Ok(())
    }

    fn poll_room(
        &mut self,
        _cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<usize, ClientError>> {
        match self.room {
            Some(0) => Poll::Pending,
            room => Poll::Ready(Ok(room.map_or(wanted, |room| room.min(wanted)))),
        }
    }

    fn send_data(
        &mut self,
        input: &mut BytesMut,
        length: usize,
        last: bool,
    ) -> Result<(), ClientError> {
        assert_eq!(self.ended, 0, "data behind the end");
        if let Some(room) = &mut self.room {
            *room = room
                .checked_sub(length)
                .expect("no more than there was room for");
        }
        self.body.extend_from_slice(&input.split_to(length));
        self.ended += usize::from(last);
        Ok(())
    }

    fn send_piece(&mut self, data: Bytes, last: bool) -> Result<(), ClientError> {
        let length = data.len();
        self.send_data(&mut BytesMut::from(data), length, last)
    }

    fn send_end(&mut self, trailers: Option<&Fields>) -> Result<(), ClientError> {
        self.ended += 1;
        self.trailers = Some(trailers.cloned());
        Ok(())
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        Poll::Ready(Ok(()))
    }

    fn progress(&self) -> u64 {
        0
    }

    fn poll_deadline(&mut self, _cx: &mut Context<'_>, _deadline: Instant) -> Poll<()> {
        Poll::Pending
    }

    fn cut_off(&mut self) {}
}

fn html() -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::OK);
    head.fields.push(b"Content-Type", b"text/html");
    head
}

/// Text with repetitions, and with parts that have none.
fn text(random: &mut StdRng) -> Vec<u8> {
    let length = random.random_range(0..200_000);
    let noise = random.random_range(0..4) == 0;
    (0..length)
        .map(|at| match noise {
            true => random.random(),
            false => b"to be or not to be, "[at % 20],
        })
        .collect()
}

#[test]
fn what_comes_in_is_what_can_be_read() {
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..60 {
        let coding = ALL[round % ALL.len()];
        let context = format!("seed {seed}, round {round}, {coding:?}");
        let text = text(&mut random);
        let framing = match random.random() {
            true => Framing::Length(text.len().max(1024) as u64),
            false => Framing::Chunked,
        };
        let mut trailers = Fields::default();
        trailers.push(b"X-Sum", b"1");
        let with_trailers = framing == Framing::Chunked && random.random();
        let mut taker = Taker::default();
        let mut client = Compressing::new(&mut taker, &Method::GET, vec![coding]);
        client.send_head(&html(), framing).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        let mut rest = BytesMut::from(&text[..]);
        let mut ended = false;
        for _ in 0..100_000 {
            let wanted = rest.len().min(random.random_range(1..40_000));
            if wanted > 0
                && let Poll::Ready(room) = client.poll_room(&mut cx, wanted)
            {
                let last = framing != Framing::Chunked && room.unwrap() >= rest.len();
                let room = client.poll_room(&mut cx, wanted);
                let Poll::Ready(Ok(room)) = room else {
                    panic!("{context}: the room is gone");
                };
                client.send_data(&mut rest, room, last).unwrap();
                ended |= last;
            }
            if rest.is_empty() && !ended {
                ended = true;
                client.send_end(with_trailers.then_some(&trailers)).unwrap();
            }
            let flushed = client.poll_flush(&mut cx).map(Result::unwrap);
            if flushed.is_ready() && ended {
                break;
            }
            if flushed.is_ready() && framing == Framing::Chunked && random.random_range(0..8) == 0 {
                let come = text.len() - rest.len();
                let read = decoded(coding, &client.client.body);
                assert!(
                    read == text[..come],
                    "{context}: {come} have come, {}",
                    read.len()
                );
            }
            client.client.room =
                (random.random_range(0..3) > 0).then(|| random.random_range(0..20_000));
        }
        let sent = client.sent();
        assert_eq!(taker.ended, 1, "{context}");
        assert_eq!(sent, taker.body.len() as u64, "{context}");
        assert!(decoded(coding, &taker.body) == text, "{context}");
        let got = taker.trailers.flatten();
        assert_eq!(got.is_some(), with_trailers, "{context}");
        let (head, framing) = taker.head.unwrap();
        assert_eq!(framing, Framing::Chunked);
        assert_eq!(head.fields.named("content-encoding").count(), 1);
    }
}

#[test]
fn others_have_their_turn() {
    let mut taker = Taker::default();
    let mut client = Compressing::new(&mut taker, &Method::GET, vec![Coding::Zstd]);
    client.send_head(&html(), Framing::Chunked).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    let mut input = BytesMut::zeroed(10 * TURN);
    for _ in 0..3 {
        let mut worked = 0;
        while let Poll::Ready(room) = client.poll_room(&mut cx, input.len()) {
            let room = room.unwrap();
            worked += room;
            assert!(worked <= TURN, "{worked}");
            client.send_data(&mut input, room, false).unwrap();
        }
        assert_eq!(worked, TURN);
        assert!(client.poll_flush(&mut cx).is_ready());
    }
}

/// A client that takes nothing makes nobody hold everything.
#[test]
fn what_is_not_taken_is_not_made() {
    let mut taker = Taker {
        room: Some(0),
        ..Taker::default()
    };
    let mut random = StdRng::seed_from_u64(1);
    let mut client = Compressing::new(&mut taker, &Method::GET, vec![Coding::Gzip]);
    client.send_head(&html(), Framing::Chunked).unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    let mut taken = 0;
    for _ in 0..100 {
        let mut noise: BytesMut = (0..TURN).map(|_| random.random::<u8>()).collect();
        while !noise.is_empty()
            && let Poll::Ready(room) = client.poll_room(&mut cx, noise.len())
        {
            let room = room.unwrap();
            taken += room;
            client.send_data(&mut noise, room, false).unwrap();
        }
        let _ = client.poll_flush(&mut cx);
    }
    assert!(taken <= MAX_WAITING + 2 * TURN, "{taken}");
}
