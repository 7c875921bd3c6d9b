//! A site with addresses of its own: it is served there and nowhere else, and nothing else is.

use std::net::SocketAddr;

use crate::support::http1::KeepAlive;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::FileTls;
use crate::support::wait::{SOON, wait_until};

const SHARED: &str = "a.example.test";
const OWN: &str = "b.example.test";
const OTHER: &str = "c.example.test";
const PLAIN: &str = "d.example.test";

fn site(host: &str, tls: &str, listen: Option<SocketAddr>) -> String {
    let listen = listen.map_or(String::new(), |at| format!("listen = [\"{at}\"]\n"));
    format!(
        "[[sites]]\nhosts = [\"{host}\"]\ntls = \"{tls}\"\nupstreams = [\"respond:{host}\"]\n{listen}"
    )
}

async fn status(https: SocketAddr, host: &str) -> Option<(u16, String)> {
    let mut connection = KeepAlive::open(https, host, None).await.ok()?;
    connection.get("/").await.ok()
}

async fn plain_status(http: SocketAddr, host: &str) -> Option<(u16, String)> {
    let mut connection = KeepAlive::open_plain(http, host).await.ok()?;
    connection.get("/").await.ok()
}

fn served(host: &str) -> Option<(u16, String)> {
    Some((200, host.to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_is_served_on_its_own_addresses_alone() {
    let place = Place::new();
    let tls = FileTls::new(&place, &[SHARED, OWN, OTHER]);
    let (own, plain) = (place.free(), place.free());
    let sites = [
        site(SHARED, "files", None),
        site(OWN, "files", Some(own)),
        site(OTHER, "files", Some(own)),
        site(PLAIN, "off", Some(plain)),
    ];
    let rest = format!("{}{}", tls.pair.table(), sites.concat());
    let mut perennial = Perennial::run(place, &rest).await;
    perennial.wait_ready().await;
    let (http, https) = (perennial.place.http, perennial.place.https);
    assert_eq!(status(https, SHARED).await, served(SHARED));
    assert_eq!(status(own, OWN).await, served(OWN));
    assert_eq!(status(own, OTHER).await, served(OTHER));
    assert_eq!(plain_status(plain, PLAIN).await, served(PLAIN));
    // 421: this is not the place for it.
    for elsewhere in [
        status(https, OWN).await,
        status(own, SHARED).await,
        plain_status(http, OWN).await,
        plain_status(http, PLAIN).await,
        plain_status(plain, SHARED).await,
    ] {
        assert_eq!(elsewhere.map(|(status, _)| status), Some(421));
    }
    // Not over a connection that was made for another site either.
    let mut connection = KeepAlive::open(https, SHARED, None).await.unwrap();
    assert_eq!(connection.get_as("/", OWN).await.unwrap().0, 421);
}

#[tokio::test(flavor = "multi_thread")]
async fn its_addresses_come_and_go() {
    let place = Place::new();
    let tls = FileTls::new(&place, &[SHARED, OWN]);
    let (first, second) = (place.free(), place.free());
    let with = |listen| {
        let sites = [site(SHARED, "files", None), site(OWN, "files", listen)];
        format!("{}{}", tls.pair.table(), sites.concat())
    };
    let mut perennial = Perennial::run(place, &with(None)).await;
    perennial.wait_ready().await;
    let https = perennial.place.https;
    assert_eq!(status(https, OWN).await, served(OWN));
    for address in [first, second] {
        perennial.rewrite_config(&with(Some(address)));
        let at_home = async || (status(address, OWN).await == served(OWN)).then_some(());
        wait_until(SOON, "the site at its address", at_home).await;
        let code = status(https, OWN).await.map(|(status, _)| status);
        assert_eq!(code, Some(421));
    }
    let closed = async || KeepAlive::open(first, OWN, None).await.err();
    wait_until(SOON, "the first address to be closed", closed).await;
    perennial.rewrite_config(&with(None));
    let back = async || (status(https, OWN).await == served(OWN)).then_some(());
    wait_until(SOON, "the site to be back", back).await;
}

/// The address of the server's listener becomes a site's own, and nobody is refused.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_changes_its_sites() {
    let place = Place::new();
    let tls = FileTls::new(&place, &[SHARED, OWN]);
    let (table, https, free) = (place.server_table(), place.https, place.free());
    let text = |server: SocketAddr, own: SocketAddr| {
        let table = table.replace(&https.to_string(), &server.to_string());
        let sites = [site(SHARED, "files", None), site(OWN, "files", Some(own))];
        format!("{table}{}{}", tls.pair.table(), sites.concat())
    };
    let mut perennial = Perennial::with_whole_config(place, &text(https, free));
    perennial.start_and_wait().await;
    perennial.wait_ready().await;
    assert_eq!(status(https, SHARED).await, served(SHARED));
    perennial.place.write("perennial.toml", text(free, https));
    let changed = async || (status(https, OWN).await == served(OWN)).then_some(());
    wait_until(SOON, "the addresses to be changed", changed).await;
    assert_eq!(status(free, SHARED).await, served(SHARED));
}
