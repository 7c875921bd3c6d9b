//! gRPC through the proxy, with a client and a server by tonic: calls of all four kinds, statuses in
//! trailers, cancellation and deadlines, by prior knowledge and with TLS.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::support::grpc::{Service, Text, call, channel, unary};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::FileTls;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "a.example.test";

struct Scene {
    _perennial: Perennial,
    service: Service,
    channel: Channel,
}

impl Scene {
    async fn start(with_tls: bool) -> Scene {
        let place = Place::new();
        let tls = FileTls::new(&place, &[NAME]);
        let service = Service::start(&place, with_tls.then_some(&tls.leaf)).await;
        let upstream = match with_tls {
            false => format!("upstreams = [\"h2c://{}\"]", service.addr),
            true => format!(
                "upstreams = [\"h2://{}\"]\nupstream_tls = {{ ca = {:?}, server_name = \"{NAME}\" }}",
                service.addr, tls.root
            ),
        };
        let site = format!("[[sites]]\nhosts = [\"{NAME}\"]\ntls = \"files\"\n{upstream}\n");
        let rest = format!("threads = 1\n{}{site}", tls.pair.table());
        let mut perennial = Perennial::run(place, &rest).await;
        perennial.wait_ready().await;
        Scene {
            channel: channel(perennial.place.https, NAME),
            _perennial: perennial,
            service,
        }
    }
}

/// An answer that does not come is a failure, too.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_all_kinds() {
    for with_tls in [false, true] {
        let scene = Scene::start(with_tls).await;
        let text = Text::new("hello", 7);
        let echo = unary(
            &scene.channel,
            "/test.Texts/Echo",
            Request::new(text.clone()),
        );
        assert_eq!(soon(echo).await.expect("an answer").into_inner(), text);

        let one = Request::new(stream::iter([Text::new("", 1000)]));
        let counted = soon(call(&scene.channel, "/test.Texts/Count", one)).await;
        let counted = counted.expect("an answer").into_inner();
        let numbers = soon(
            counted
                .map(|text| text.expect("one").number)
                .collect::<Vec<_>>(),
        )
        .await;
        assert_eq!(numbers, (0..1000).collect::<Vec<_>>());

        let many = Request::new(stream::iter((0..500).map(|n| Text::new("more", n))));
        let summed = soon(call(&scene.channel, "/test.Texts/Sum", many)).await;
        let sum = soon(summed.expect("an answer").into_inner().message()).await;
        assert_eq!(sum.expect("no error").expect("one").number, 499 * 500 / 2);
        // All of that over one connection to the upstream.
        assert_eq!(scene.service.seen.connections.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_speak_at_once() {
    let scene = Scene::start(false).await;
    let (say, said) = mpsc::channel::<Text>(1);
    let said = stream::unfold(said, async |mut said| Some((said.recv().await?, said)));
    let chat = soon(call(&scene.channel, "/test.Texts/Chat", Request::new(said))).await;
    let mut chat = chat.expect("an answer").into_inner();
    for number in 0..20 {
        soon(say.send(Text::new("ping", number)))
            .await
            .expect("taken");
        // The answer comes before the next is said.
        let answer = soon(chat.message()).await.expect("no error").expect("one");
        assert_eq!(answer, Text::new("PING", number));
    }
    drop(say);
    assert_eq!(soon(chat.message()).await.expect("no error"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_come_in_trailers_and_without_a_body() {
    let scene = Scene::start(false).await;
    let failed = unary(
        &scene.channel,
        "/test.Texts/Fail",
        Request::new(Text::default()),
    );
    let status = soon(failed).await.expect_err("a failure");
    assert_eq!(
        (status.code(), status.message()),
        (Code::FailedPrecondition, "no luck")
    );
    assert_eq!(status.metadata().get("x-why").expect("it"), "because");

    let one = Request::new(stream::iter([Text::default()]));
    let late = soon(call(&scene.channel, "/test.Texts/FailLate", one)).await;
    let mut late = late.expect("an answer").into_inner();
    let first = soon(late.message()).await.expect("no error").expect("one");
    assert_eq!(first.text, "first");
    let status = soon(late.message()).await.expect_err("a failure");
    assert_eq!(
        (status.code(), status.message()),
        (Code::Aborted, "then not")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_given_up_is_given_up_behind_us_too() {
    let scene = Scene::start(false).await;
    let seen = scene.service.seen.clone();
    for deadline in [None, Some(Duration::from_secs(3))] {
        let mut request = Request::new(Text::default());
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        let before = seen.hanging.load(Ordering::SeqCst);
        let channel = scene.channel.clone();
        let hanging =
            tokio::spawn(async move { unary(&channel, "/test.Texts/Hang", request).await });
        wait_until(SOON, "the call to hang", async || {
            (seen.hanging.load(Ordering::SeqCst) > before).then_some(())
        })
        .await;
        match deadline {
            None => hanging.abort(),
            Some(_) => {
                let status = soon(hanging)
                    .await
                    .expect("no panic")
                    .expect_err("too late");
                let codes = [Code::DeadlineExceeded, Code::Cancelled];
                assert!(codes.contains(&status.code()), "{status:?}");
            }
        }
        wait_until(SOON, "it to be cancelled", async || {
            (seen.cancelled.load(Ordering::SeqCst) > before).then_some(())
        })
        .await;
    }
    // The server was told how long the client would wait.
    assert_eq!(seen.with_deadline.load(Ordering::SeqCst), 1);
}
