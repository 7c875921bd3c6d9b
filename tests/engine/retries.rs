//! Connections to upstreams that are reused, and what happens when one turns out to be over.

use super::{Ask, Asked, BOTH, Scene, answered, in_front_of, scene};
use crate::support::client::Version;
use crate::support::place::Place;
use crate::support::scripted::{Peer, ScriptedUpstream, answer};
use crate::support::wire::Message;

/// A connection in the proxy's pool: it has served a request.
async fn pooled(scene: &Scene) -> Peer {
    let asked = scene.ask(Version::Http1, Ask::get());
    let (mut peer, _) = scene.upstream.request().await;
    peer.send(answer("200 OK", "first")).await.expect("sent");
    assert_eq!(answered(asked).await.text(), "first");
    peer
}

/// A request that came on a connection from the pool, and is still to be answered.
async fn reused(scene: &Scene, version: Version, ask: Ask) -> (Peer, Asked, Message) {
    let mut old = pooled(scene).await;
    let asked = scene.ask(version, ask);
    let request = old.request().await.expect("on the connection before");
    (old, asked, request)
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_reused() {
    let scene = scene().await;
    for version in BOTH {
        for ask in [Ask::get(), Ask::post("body"), Ask::new("HEAD", "/")] {
            let (mut peer, asked, request) = reused(&scene, version, ask.clone()).await;
            assert_eq!(request.asked().0, ask.method);
            let last = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
            peer.send(last).await.expect("sent");
            assert_eq!(answered(asked).await.status(), 204);
            scene.upstream.assert_no_other();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_to_be_closed_are_not_reused() {
    let scene = scene().await;
    for last in [
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        // One byte more than was announced: nobody knows what comes next.
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok!",
        "HTTP/1.1 204 No Content\r\n\r\nbody",
    ] {
        let (mut peer, asked, _) = reused(&scene, Version::Http1, Ask::get()).await;
        peer.send(last).await.expect("sent");
        let answer = answered(asked).await.assert_whole();
        assert!(
            ["ok", ""].contains(&&*answer.text()),
            "{last:?}: {answer:?}"
        );
        // The next one comes on another connection, and `peer` is still open here.
        drop(pooled(&scene).await);
        assert_eq!(peer.rest().await.expect("closed").0, b"", "{last:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_closed_between_requests_costs_none() {
    let scene = scene().await;
    for version in BOTH {
        for ask in [Ask::get(), Ask::post("once")] {
            drop(pooled(&scene).await);
            let asked = scene.ask(version, ask);
            let (mut peer, _) = scene.upstream.request().await;
            let last = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
            peer.send(last).await.expect("sent");
            assert_eq!(answered(asked).await.status(), 200, "{version:?}");
        }
    }
}

/// The upstream closes just as the request is on its way. Nothing tells a proxy whether it was
/// worked on: RFC 9110 section 9.2.2 lets it repeat what is idempotent, and that alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_reused_connection_that_closes_without_a_word_is_replaced() {
    let scene = scene().await;
    for version in BOTH {
        for ask in [Ask::get(), Ask::new("PUT", "/").body("again")] {
            let (old, asked, first) = reused(&scene, version, ask).await;
            drop(old);
            let (mut peer, second) = scene.upstream.request().await;
            assert_eq!(first, second, "{version:?}");
            let last = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
            peer.send(last).await.expect("sent");
            assert_eq!(answered(asked).await.status(), 200, "{version:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_never_sent_twice() {
    let scene = scene().await;
    for version in BOTH {
        let (old, asked, _) = reused(&scene, version, Ask::post("once")).await;
        drop(old);
        assert_eq!(answered(asked).await.status(), 502, "{version:?}");
        scene.upstream.assert_no_other();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_kept_is_not_sent_twice() {
    let scene = scene().await;
    for version in BOTH {
        let (old, asked, _) = reused(
            &scene,
            version,
            Ask::new("PUT", "/").body(vec![b'x'; 200_000]),
        )
        .await;
        drop(old);
        assert_eq!(answered(asked).await.status(), 502, "{version:?}");
        scene.upstream.assert_no_other();
    }
}

/// A new connection that closes without a word is no race: whatever the request did there, it
/// would do again.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_connection_that_closes_without_a_word_is_an_answer() {
    let scene = scene().await;
    for version in BOTH {
        for ask in [Ask::get(), Ask::post("once")] {
            let asked = scene.ask(version, ask);
            drop(scene.upstream.request().await);
            assert_eq!(answered(asked).await.status(), 502, "{version:?}");
            scene.upstream.assert_no_other();
        }
    }
}

/// Once a byte of the answer has come, the request was worked on.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_repeated_after_the_first_byte() {
    let scene = scene().await;
    for version in BOTH {
        let (mut old, asked, _) = reused(&scene, version, Ask::get()).await;
        old.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
            .await
            .expect("sent");
        drop(old);
        let answer = answered(asked).await;
        assert!(answer.cut.is_some() || answer.status() == 502, "{answer:?}");
        scene.upstream.assert_no_other();
    }
}

/// Whatever comes on an idle connection answers no request.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_asked_for_is_nobodys_answer() {
    let scene = scene().await;
    for version in BOTH {
        let mut old = pooled(&scene).await;
        old.send(answer("200 OK", "poison")).await.expect("sent");
        let asked = scene.ask(version, Ask::get());
        let (mut peer, _) = scene.upstream.request().await;
        let last = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nmine";
        peer.send(last).await.expect("sent");
        assert_eq!(answered(asked).await.text(), "mine", "{version:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_answer_behind_the_first_is_nobodys_answer() {
    let scene = scene().await;
    for version in BOTH {
        let asked = scene.ask(version, Ask::get());
        let (mut old, _) = scene.upstream.request().await;
        let two = [answer("200 OK", "mine"), answer("200 OK", "poison")].concat();
        old.send(two).await.expect("sent");
        assert_eq!(answered(asked).await.text(), "mine", "{version:?}");
        drop(pooled(&scene).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_here_is_tried_there() {
    let place = Place::new();
    let live = ScriptedUpstream::start(&place).await;
    let both = [&*place.free().to_string(), &live.addr.to_string()];
    let perennial = in_front_of(place, &both).await;
    let scene = Scene::new(perennial, live);
    for version in BOTH {
        for ask in [Ask::get(), Ask::post("once")] {
            let asked = scene.ask(version, ask.clone());
            let (mut peer, request) = scene.upstream.request().await;
            assert_eq!(request.body.is_empty(), ask.body.is_none());
            let last = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
            peer.send(last).await.expect("sent");
            assert_eq!(answered(asked).await.status(), 200, "{version:?}");
        }
    }
}
