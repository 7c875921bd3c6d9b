//! Asking the program under test through its admin API.

use serde_json::Value;

use super::perennial::Perennial;
use super::wait::{SOON, wait_until};

impl Perennial {
    pub async fn admin(&self, method: reqwest::Method, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.place.admin);
        let response = client().request(method, url).send().await;
        let response = response.unwrap_or_else(|error| panic!("admin {path}: {error}"));
        let status = response.status().as_u16();
        (status, response.text().await.expect("a body"))
    }

    /// Whatever comes of it: for a process that may die while it answers.
    pub async fn admin_post_unanswered(&self, path: &str) {
        let url = format!("http://{}{path}", self.place.admin);
        drop(client().post(url).send().await);
    }

    pub async fn admin_get(&self, path: &str) -> (u16, String) {
        self.admin(reqwest::Method::GET, path).await
    }

    pub async fn admin_post(&self, path: &str) -> (u16, String) {
        self.admin(reqwest::Method::POST, path).await
    }

    pub async fn status_json(&self) -> Value {
        let (status, body) = self.admin_get("/status").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("/status is JSON")
    }

    pub async fn metrics_text(&self) -> String {
        self.admin_get("/metrics").await.1
    }

    /// The entry of `/status` for the certificate that covers a name.
    pub async fn certificate(&self, name: &str) -> Option<Value> {
        let status = self.status_json().await;
        let all = status["certificates"].as_array()?.iter();
        let covers = |entry: &&Value| {
            let mut names = entry["names"].as_array().into_iter().flatten();
            entry["name"] == name || names.any(|one| one == name)
        };
        all.filter(covers)
            .max_by_key(|entry| entry["serial"].is_string())
            .cloned()
    }

    /// A field of `/status` about a name, wherever it stands: in the certificate's entry, or in
    /// one about what is being ordered.
    pub async fn status_field(&self, name: &str, field: &str) -> Option<Value> {
        find_field(&self.status_json().await, name, field)
    }

    /// Has the certificate for a name renewed; the order goes on behind the answer. An order that
    /// still runs would be the answer: a certificate may be served a moment before its end.
    pub async fn renew(&self, name: &str) {
        wait_until(SOON, "the end of what runs", async || {
            let running = self.status_field(name, "in_progress").await;
            (running != Some(Value::Bool(true))).then_some(())
        })
        .await;
        let (status, body) = self
            .admin_post(&format!("/certificates/{name}/renew"))
            .await;
        assert_eq!(status, 202, "{body}");
    }

    /// What is said of the last attempt for a name, once that has failed.
    pub async fn last_error(&self, name: &str) -> String {
        let error = wait_until(SOON, "last_error in /status", async || {
            self.status_field(name, "last_error").await
        });
        error.await.as_str().expect("a text").to_owned()
    }

    /// The value of a metric with this name and all these `key="value"` labels.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let text = self.metrics_text().await;
        let fits = |line: &&str| {
            let named = line
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']));
            named && labels.iter().all(|label| line.contains(label))
        };
        let line = text.lines().find(fits)?;
        line.rsplit(' ').next()?.parse().ok()
    }
}

fn find_field(value: &Value, name: &str, field: &str) -> Option<Value> {
    if let Value::Array(all) = value {
        return all.iter().find_map(|one| find_field(one, name, field));
    }
    let object = value.as_object()?;
    let mut names = object
        .get("names")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let about_it = value["name"] == name || names.any(|one| one == name);
    let here = object
        .get(field)
        .filter(|found| about_it && !found.is_null());
    let below = || object.values().find_map(|one| find_field(one, name, field));
    here.cloned().or_else(below)
}

/// A new connection each time: a pooled one would outlive the process it leads to.
pub fn client() -> reqwest::Client {
    super::tls::install_provider();
    let builder = reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0);
    let builder = builder.tls_backend_preconfigured(super::tls::trusting_nothing());
    builder.timeout(SOON).build().expect("a client")
}
