//! certbot and lego, the programs themselves, with a certificate authority: what they renew is
//! served within a second, and nobody told Perennial.

use std::time::{Duration, Instant};

use crate::reload::{LIMIT, NAME, start};
use crate::renewers::{FoundBy, Source, wait_served};
use crate::support::acme_clients::{AcmeClient, Kind};
use crate::support::certs::serial_of_pem;
use crate::support::client::served;
use crate::support::handshakes::Handshakes;
use crate::support::pebble::{Options, Pebble};
use crate::support::perennial::Perennial;
use crate::support::place::Place;

/// What is promised, from the end of the client to the first handshake.
const PROMISE: Duration = Duration::from_secs(1);

/// A machine that is busy with other tests may miss it once, and then [`LIMIT`] holds; that which
/// waits for something misses it each time.
const TRIES: usize = 3;

struct Case {
    kind: Kind,
    source: Source,
    found_by: FoundBy,
    reuse_key: bool,
}

impl Case {
    fn new(kind: Kind, source: Source, found_by: FoundBy) -> Case {
        Case {
            kind,
            source,
            found_by,
            reuse_key: false,
        }
    }

    fn reusing_the_key(self) -> Case {
        Case {
            reuse_key: true,
            ..self
        }
    }

    async fn run(self) {
        let place = Place::new();
        let http = place.free();
        let options = Options {
            // certbot gives up where a nonce is refused twice.
            nonce_reject: 0,
            // As at Let's Encrypt: what was validated just now is not validated again.
            authz_reuse: 100,
            http_port: Some(http.port()),
            ..Options::default()
        };
        let Some(pebble) = Pebble::start(&place, options).await else {
            return;
        };
        let mut client = AcmeClient::new(self.kind, NAME, &place, &pebble, http);
        client.reuse_key = self.reuse_key;
        let table = match self.source {
            Source::Pair => client.pair().table(),
            Source::Folder => format!("directories = [{:?}]\n", client.folder()),
        };
        let perennial = start(place, &format!("{}{table}", self.found_by.table())).await;
        self.issue_then_renew(&client, &perennial).await;
    }

    /// The program was there before the first certificate was, and even before its folder.
    async fn issue_then_renew(&self, client: &AcmeClient, perennial: &Perennial) {
        client.issue().await;
        let mut serials = vec![on_disk(client)];
        self.time_until_served(perennial, &serials[0]).await;

        let handshakes = Handshakes::start(perennial.place.https, NAME);
        self.renew_until_prompt(client, perennial, &mut serials)
            .await;
        let serials: Vec<&str> = serials.iter().map(String::as_str).collect();
        handshakes.stop(&serials).await;
        let served = served(perennial.place.https, Some(NAME)).await;
        let served = served.expect("a handshake");
        assert!(served.issuer.contains("Pebble"), "{served:?}");
        assert_eq!(served.chain_len, 2, "leaf and intermediate");
    }

    /// Renews until a renewal was served within what is promised.
    async fn renew_until_prompt(
        &self,
        client: &AcmeClient,
        perennial: &Perennial,
        serials: &mut Vec<String>,
    ) {
        let mut times = Vec::new();
        while times.len() < TRIES {
            self.found_by.settle(&client.folder()).await;
            let key = std::fs::read(client.pair().key).expect("a key");
            client.renew().await;
            let new = on_disk(client);
            assert!(!serials.contains(&new), "it was renewed");
            let took = self.time_until_served(perennial, &new).await;
            serials.push(new);
            let kept = std::fs::read(client.pair().key).expect("a key") == key;
            assert_eq!(kept, self.reuse_key, "the key stayed the same");
            if took < PROMISE {
                return;
            }
            times.push(took);
        }
        panic!("each renewal was served late: {times:?}");
    }

    /// From the end of the client to the first handshake with what it got.
    async fn time_until_served(&self, perennial: &Perennial, serial: &str) -> Duration {
        let written = Instant::now();
        wait_served(perennial, serial, Duration::from_secs(60)).await;
        let took = written.elapsed();
        eprintln!("{:?}: served {took:?} after it ended", self.kind);
        assert!(took < LIMIT, "served {took:?} after {:?} ended", self.kind);
        took
    }
}

fn on_disk(client: &AcmeClient) -> String {
    let text = std::fs::read_to_string(client.pair().certificate).expect("a certificate");
    serial_of_pem(&text).expect("PEM")
}

#[tokio::test(flavor = "multi_thread")]
async fn certbot_renews_a_pair_with_events() {
    let case = Case::new(Kind::Certbot, Source::Pair, FoundBy::Events);
    case.run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certbot_renews_a_pair_and_keeps_the_key_with_the_poll() {
    let case = Case::new(Kind::Certbot, Source::Pair, FoundBy::Poll);
    case.reusing_the_key().run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certbot_renews_in_a_drop_folder_with_events() {
    let case = Case::new(Kind::Certbot, Source::Folder, FoundBy::Events);
    case.run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certbot_renews_in_a_drop_folder_with_the_poll() {
    let case = Case::new(Kind::Certbot, Source::Folder, FoundBy::Poll);
    case.run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lego_renews_a_pair_with_events() {
    let case = Case::new(Kind::Lego, Source::Pair, FoundBy::Events);
    case.run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lego_renews_a_pair_with_the_poll() {
    let case = Case::new(Kind::Lego, Source::Pair, FoundBy::Poll);
    case.run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lego_renews_in_a_drop_folder_and_keeps_the_key_with_events() {
    let case = Case::new(Kind::Lego, Source::Folder, FoundBy::Events);
    case.reusing_the_key().run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lego_renews_in_a_drop_folder_with_the_poll() {
    let case = Case::new(Kind::Lego, Source::Folder, FoundBy::Poll);
    case.run().await;
}
