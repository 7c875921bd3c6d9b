//! What everything has in common that this program asks of others by HTTP: CAs, those who say which
//! names may be had, and those who say who is let in. How long they may take is theirs to say.

use std::error::Error;

/// What this program is called in its own requests.
const USER_AGENT: &str = concat!("perennial/", env!("CARGO_PKG_VERSION"));

/// The library that does the TLS of clients. Only the first installation in a process counts; a
/// later one is the same provider.
pub fn install_tls() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// A client that follows no redirects: who is asked is configured, and nobody else answers.
pub fn builder() -> reqwest::ClientBuilder {
    install_tls();
    reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
}

/// An error with all its causes: the outermost of a failed request says nothing alone.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
