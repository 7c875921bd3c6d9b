//! Why a name gets one certificate and not another.

use std::path::PathBuf;

use crate::reload::{EVENTS, NAME, wait_served};
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::sites::{FileTls, site};
use crate::support::wait::{SOON, wait_until};
use crate::support::writers::Pair;

#[tokio::test(flavor = "multi_thread")]
async fn certs_show_says_why_each_is_chosen_or_not() {
    let place = Place::new();
    let files = FileTls::new(&place, &[NAME]);
    let newer = Pair::write(&place.path("folder"), &files.ca.leaf(&[NAME]));
    let config = format!(
        "{EVENTS}directories = [\"{}\"]\n{}{}",
        place.path("folder").display(),
        files.pair.table(),
        site(NAME, "files", &["respond:hello"])
    );
    let perennial = Perennial::run(place, &config).await;
    wait_served(&perennial, &files.leaf, SOON).await;
    let json = ["certs", "show", NAME, "--json"];
    let found = wait_until(SOON, "both certificates", async || {
        // What is served a moment before it is told is no certificate to the command yet.
        let shown = perennial.cli(&json).await;
        let found = shown.success().then(|| shown.json())?;
        (found.as_array()?.len() == 2).then_some(found)
    })
    .await;
    let path = |at: usize| PathBuf::from(found[at]["path"].as_str().expect("a path"));
    assert_eq!(path(0), files.pair.certificate);
    assert_eq!(found[0]["verdict"], "chosen");
    assert_eq!(path(1), newer.certificate);
    assert_eq!(found[1]["verdict"], "source");
    let text = perennial.cli(&["certs", "show", NAME]).await;
    let text = text.assert_success().stdout;
    let why = "[[certificates.files]] before a folder";
    assert!(text.contains(why), "{text}");
    let (code, body) = perennial.admin_get("/certificates/nobody.test").await;
    assert_eq!(code, 404, "{body}");
    let (code, _) = perennial.admin_get("/certificates/no%20name").await;
    assert_eq!(code, 400);
}
