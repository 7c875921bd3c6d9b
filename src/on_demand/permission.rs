//! Asking somebody else whether a name may be had: one GET, whose status is the answer. It decides
//! nothing and remembers nothing but whether the other side answers at all.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Semaphore;

use crate::certificate::name::Name;
use crate::config::{Config, Permission};
use crate::http_client::{self, causes};

/// Questions under way at the same time: whoever answers them may be small.
const MAX_QUESTIONS: usize = 16;

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Yes,
    /// And how it was said.
    No(String),
    /// Nobody said anything that could be understood.
    Unknown(String),
}

/// Where permission is asked for.
struct Asker {
    url: String,
    client: reqwest::Client,
    questions: Semaphore,
    /// Whether the last question had no answer: said once, not for each.
    failing: AtomicBool,
}

impl Asker {
    fn new(url: String, timeout: Duration) -> Result<Asker, String> {
        let builder = || http_client::builder().no_proxy().timeout(timeout);
        let client = match builder().build() {
            // A host without any roots of its own, as minimal containers are.
            Err(_) if url.starts_with("http://") => builder().tls_certs_only([]).build(),
            built => built,
        };
        let client = client.map_err(|error| {
            format!("cannot prepare HTTPS for {url}: {error}; install the system's CA certificates")
        })?;
        Ok(Asker {
            url,
            client,
            questions: Semaphore::new(MAX_QUESTIONS),
            failing: AtomicBool::new(false),
        })
    }

    /// Asks for a name, on behalf of a client; for a renewal there is none.
    async fn ask(&self, name: &Name, client: Option<IpAddr>) -> Answer {
        // Never closed.
        let _turn = self.questions.acquire().await;
        let url = question(&self.url, name, client);
        let answer = match self.client.get(url).send().await {
            Ok(response) => understand(response.status().as_u16()),
            Err(error) => Answer::Unknown(causes(&error.without_url())),
        };
        self.note(&answer);
        answer
    }

    fn note(&self, answer: &Answer) {
        let (failing, url) = (matches!(answer, Answer::Unknown(_)), &self.url);
        let before = self.failing.swap(failing, Ordering::Relaxed);
        match answer {
            Answer::Unknown(cause) if !before => tracing::warn!(
                url,
                cause,
                "nobody says which names may be had on demand: none is until then"
            ),
            Answer::Yes | Answer::No(_) if before => {
                tracing::info!(url, "permission for names can be asked for again");
            }
            _ => {}
        }
    }
}

/// Whom the configuration has asked, as it is at the time. Cheap to clone.
#[derive(Clone, Default)]
pub struct Permissions(Arc<ArcSwapOption<Asked>>);

/// Somebody who says which names may be had.
struct Asked {
    permission: Permission,
    /// `None`: it could not be prepared, which is logged.
    asker: Option<Asker>,
}

impl Permissions {
    pub fn new(config: &Config) -> Permissions {
        let permissions = Permissions::default();
        permissions.reconfigure(config);
        permissions
    }

    /// Goes by this configuration from now on.
    pub fn reconfigure(&self, config: &Config) {
        let on_demand = config.acme.on_demand.as_ref();
        let Some(Permission::Ask { url, timeout }) = on_demand.map(|it| &it.permission) else {
            return self.0.store(None);
        };
        let permission = on_demand.map(|it| it.permission.clone());
        let before = self.0.load();
        let same = before.as_ref().map(|before| &before.permission) == permission.as_ref();
        if let Some(permission) = permission.filter(|_| !same) {
            let asker = Asker::new(url.clone(), *timeout)
                .inspect_err(|error| tracing::error!("no name can be had on demand: {error}"))
                .ok();
            self.0.store(Some(Arc::new(Asked { permission, asker })));
        }
    }

    /// Asks for a name. `None`: nobody is to be asked, because there is a list.
    pub async fn ask(&self, name: &Name, client: Option<IpAddr>) -> Option<Answer> {
        let asked = self.0.load_full()?;
        Some(match &asked.asker {
            Some(asker) => asker.ask(name, client).await,
            None => Answer::Unknown("permission cannot be asked for, see the log".to_owned()),
        })
    }

    /// Whether a certificate may be renewed. One that was permitted once, and that nobody can say
    /// anything about, is: no outage of others may become one of ours.
    pub async fn may_renew(&self, name: Name) -> Result<(), String> {
        match self.ask(&name, None).await {
            Some(Answer::No(cause)) => Err(format!("no permission: {cause}")),
            Some(Answer::Yes | Answer::Unknown(_)) | None => Ok(()),
        }
    }
}

/// What both hold needs no escaping in a query (RFC 3986 section 3.4).
fn question(url: &str, name: &Name, client: Option<IpAddr>) -> String {
    let separator = if url.contains('?') { '&' } else { '?' };
    let client = client.map(|client| format!("&client={}", client.to_canonical()));
    format!(
        "{url}{separator}domain={name}{}",
        client.unwrap_or_default()
    )
}

fn understand(status: u16) -> Answer {
    match status {
        200..=299 => Answer::Yes,
        429 | 500.. => Answer::Unknown(format!("the answer is {status}")),
        _ => Answer::No(format!("the answer is {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_2xx_is_yes() {
        assert_eq!(understand(200), Answer::Yes);
        assert_eq!(understand(204), Answer::Yes);
        for status in [302, 308, 400, 403, 404] {
            assert!(matches!(understand(status), Answer::No(_)), "{status}");
        }
        for status in [429, 500, 503] {
            assert!(matches!(understand(status), Answer::Unknown(_)), "{status}");
        }
    }

    #[test]
    fn the_question_holds_name_and_client() {
        let name: Name = "a.test".parse().unwrap();
        let ask = |url, client: &str| question(url, &name, Some(client.parse().unwrap()));
        assert_eq!(
            question("http://h/p", &name, None),
            "http://h/p?domain=a.test"
        );
        assert_eq!(
            ask("http://h/p", "::ffff:192.0.2.1"),
            "http://h/p?domain=a.test&client=192.0.2.1"
        );
        assert_eq!(
            ask("http://h/p?key=1", "2001:db8::1"),
            "http://h/p?key=1&domain=a.test&client=2001:db8::1"
        );
    }
}
