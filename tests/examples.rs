//! Every example runs: the real program serves it, on addresses of the test's own, and with a CA that
//! nobody can reach.

use std::path::Path;

use toml::{Table, Value};

use crate::support::http1::KeepAlive;
use crate::support::perennial::Perennial;
use crate::support::place::Place;

const NOWHERE: &str = "https://127.0.0.1:9/directory";

#[tokio::test(flavor = "multi_thread")]
async fn every_example_runs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let files = std::fs::read_dir(&folder).unwrap().map(|it| it.unwrap());
    let files = files.map(|file| file.path());
    let mut seen = 0;
    for file in files.filter(|file| file.extension().is_some_and(|it| it == "toml")) {
        let place = Place::new();
        for beside in ["certs", "www", "app"] {
            copy(&folder.join(beside), &place.path(beside));
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let (text, host) = adapted(&text, &place);
        let mut perennial = Perennial::with_whole_config(place, &text);
        perennial.start_and_wait().await;
        let client = KeepAlive::open_plain(perennial.place.http, &host).await;
        let answer = client.expect("a connection").get("/").await;
        let (status, _) = answer.expect("an answer");
        // A redirect to HTTPS, or what comes of an upstream that is not there.
        assert!(
            [200, 301, 302, 307, 308, 502].contains(&status),
            "{}: {status}",
            file.display()
        );
        seen += 1;
    }
    assert!(seen >= 18, "{seen}");
}

/// Addresses, state and CAs are the test's; all else is the example's. And the first host of it.
fn adapted(text: &str, place: &Place) -> (String, String) {
    let mut config: Table = text.parse().unwrap();
    let own: Table = place.server_table().parse().unwrap();
    let server = table(&mut config, "server");
    for (key, value) in own["server"].as_table().unwrap() {
        server.insert(key.clone(), value.clone());
    }
    let acme = table(&mut config, "acme");
    acme.insert("directory".to_owned(), NOWHERE.into());
    for (number, fallback) in acme
        .get_mut("fallback")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .enumerate()
    {
        fallback["directory"] = format!("{NOWHERE}{number}").into();
    }
    let host = config["sites"][0]["hosts"][0].as_str().unwrap();
    let host = host.replace('*', "any");
    (config.to_string(), host)
}

fn table<'t>(config: &'t mut Table, name: &str) -> &'t mut Table {
    let entry = config.entry(name).or_insert_with(|| Table::new().into());
    entry.as_table_mut().unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}
