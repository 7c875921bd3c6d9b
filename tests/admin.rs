//! What the admin API tells, and to whom it listens.

use reqwest::Method;

use crate::start::{fetch, localhost};
use crate::support::client::served;
use crate::support::clock;
use crate::support::command::curl;

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_tells_what_it_serves() {
    let perennial = localhost().await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(perennial.admin_get(path).await.0, 200, "{path}");
    }
    let status = perennial.status_json().await;
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["uptime_seconds"].is_number(), "{status}");
    assert!(status["sites"].is_array(), "{status}");
    let entry = perennial.certificate("localhost").await.expect("an entry");
    assert_eq!(entry["source"], "internal");
    let fields = [
        "name",
        "path",
        "serial",
        "fingerprint",
        "issuer",
        "not_before",
        "not_after",
    ];
    for field in fields.into_iter().chain(["loaded_at", "next_renewal"]) {
        assert!(entry[field].is_string(), "{field} is missing: {entry}");
    }
    let served = served(perennial.place.https, Some("localhost"))
        .await
        .expect("served");
    let plain = |field: &str| entry[field].as_str().unwrap_or_default().replace(':', "");
    assert_eq!(plain("fingerprint").to_lowercase(), served.fingerprint);
    assert_eq!(plain("serial").to_lowercase(), served.serial);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_the_names_that_dashboards_use() {
    let perennial = localhost().await;
    let url = format!("https://localhost:{}/", perennial.place.https.port());
    fetch(&perennial, &url, &[]).await;
    let text = perennial.metrics_text().await;
    let names = [
        "certificate_not_after_seconds{",
        "certificate_reloads_total{",
    ];
    let more = ["tls_handshakes_total{", "requests_total{", "connections"];
    for name in names.into_iter().chain(more) {
        let name = format!("perennial_{name}");
        assert!(text.contains(&name), "{name} is missing:\n{text}");
    }
    let labels = ["name=\"localhost\"", "source=\"internal\""];
    let not_after = perennial
        .metric("perennial_certificate_not_after_seconds", &labels)
        .await;
    let now = clock::now().unix_timestamp() as f64;
    assert!(not_after.expect("a value") > now);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_page_cannot_post_to_the_admin_api() {
    let perennial = localhost().await;
    let url = format!("http://{}/reload", perennial.place.admin);
    for header in ["Origin: https://evil.example", "Host: evil.example"] {
        let arguments = [
            "-X",
            "POST",
            "-H",
            header,
            "-w",
            "%{stderr}%{http_code}",
            &url,
        ];
        let code = curl(&arguments).await.assert_success().stderr;
        assert!(code.starts_with('4'), "{header}: {code}");
    }
    let (code, body) = perennial.admin(Method::POST, "/reload").await;
    assert_eq!(code, 200, "{body}");
}
