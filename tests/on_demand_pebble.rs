//! Certificates on demand from a real authority: ordered while the first client waits in its
//! handshake, once for all that wait.

use crate::support::client::{Served, served, served_patiently};
use crate::support::command::{curl, s_client};
use crate::support::pebble::{Options, Pebble};
use crate::support::perennial::Perennial;
use crate::support::permission::{PermissionServer, Say};
use crate::support::place::Place;
use crate::support::wait::{SOON, wait_until};

const NAME: &str = "shop.customer.test";

struct Scene {
    perennial: Perennial,
    pebble: Pebble,
    permission: PermissionServer,
}

async fn start() -> Option<Scene> {
    let place = Place::new();
    let pebble = Pebble::start(&place, Options::default()).await?;
    let permission = PermissionServer::start(&place, Say::Yes).await;
    let rest = format!(
        "{}[acme.on_demand]\nask = \"{}\"\n[[sites]]\nhosts = [\"*\"]\non_demand = true\n\
         upstreams = [\"respond:hello\"]\n",
        pebble.acme_table(),
        permission.url
    );
    let perennial = Perennial::run(place, &rest).await;
    Some(Scene {
        perennial,
        pebble,
        permission,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_request_for_a_name_waits_for_its_certificate_and_is_answered() {
    let Some(mut scene) = start().await else {
        return;
    };
    // Nothing is wanted before somebody asks.
    scene.perennial.wait_ready().await;
    assert_eq!(scene.pebble.orders(), 0);
    let place = &scene.perennial.place;
    let root = place.write("issuing-root.pem", scene.pebble.issuing_root().await);
    let root = root.display().to_string();
    let https = place.https;
    let resolve = format!("{NAME}:{}:{}", https.port(), https.ip());
    let url = format!("https://{NAME}:{}/", https.port());
    let arguments = [
        "--max-time",
        "60",
        "--cacert",
        &root,
        "--resolve",
        &resolve,
        &url,
    ];
    let done = curl(&arguments).await.assert_success();
    assert_eq!(done.stdout, "hello");
    assert_eq!(scene.pebble.orders(), 1);
    // curl dials from the address that it dials to.
    let question = format!("domain={NAME}&client={}", local_client(&scene.perennial));
    assert_eq!(scene.permission.asked(), [question]);
    // openssl waits as well as curl does.
    let second = "blog.other.test";
    let address = https.to_string();
    let arguments = ["-connect", &address, "-servername", second];
    let verified = [
        "-CAfile",
        &root,
        "-verify_hostname",
        second,
        "-verify_return_error",
    ];
    let done = s_client(&[&arguments[..], &verified[..]].concat())
        .await
        .assert_success();
    assert!(
        done.stdout.contains("Verify return code: 0"),
        "{}",
        done.stdout
    );
    assert_eq!(scene.pebble.orders(), 2);
    let again = served(https, Some(NAME)).await.expect("served at once");
    assert_eq!(again.names, [NAME]);
    assert_eq!(scene.pebble.orders(), 2);
    assert!(
        place
            .state()
            .join(format!("on-demand/{NAME}/p256/current"))
            .exists()
    );
    let row = wait_until(SOON, "a plan for its renewal", async || {
        let row = scene.perennial.certificate(NAME).await?;
        row["next_renewal"].is_string().then_some(row)
    })
    .await;
    assert_eq!(row["source"], "acme");
    let status = &scene.perennial.status_json().await["on_demand"];
    assert_eq!(status["loaded"], 2, "{status}");
    assert_eq!(status["waiting"], 0, "{status}");
}

/// The kernel's choice of a source address for a loopback destination.
fn local_client(perennial: &Perennial) -> std::net::IpAddr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect(perennial.place.https).expect("a route");
    socket.local_addr().expect("an address").ip()
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_handshakes_at_once_for_a_new_name_are_one_order() {
    let Some(scene) = start().await else {
        return;
    };
    let https = scene.perennial.place.https;
    let handshakes = (0..20).map(|_| tokio::spawn(served_patiently(https, NAME)));
    let handshakes: Vec<_> = handshakes.collect();
    let mut shown: Vec<Served> = Vec::new();
    for handshake in handshakes {
        let served = handshake.await.expect("no panic");
        shown.push(served.expect("a certificate for everyone"));
    }
    assert!(shown.iter().all(|served| served.issuer.contains("Pebble")));
    assert!(shown.iter().all(|served| served.serial == shown[0].serial));
    assert_eq!(scene.pebble.orders(), 1, "{}", scene.pebble.log());
    assert_eq!(scene.permission.asked().len(), 1);
}
