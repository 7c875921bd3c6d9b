//! What the scripted authority remembers.

use std::collections::HashSet;

use serde_json::{Value, json};

#[derive(Default)]
pub struct Book {
    pub nonces: HashSet<String>,
    /// JWK thumbprint (RFC 7638) of each account; its number is its place.
    pub accounts: Vec<String>,
    pub keys: Vec<Value>,
    /// Each contact that an account was changed to.
    pub contacts: Vec<Value>,
    pub orders: Vec<Order>,
    /// PEM chains.
    pub certificates: Vec<String>,
}

pub struct Order {
    pub account: usize,
    pub authorizations: Vec<Authorization>,
    pub replaces: Option<String>,
    pub profile: Option<String>,
    pub state: OrderState,
}

pub enum OrderState {
    Open,
    /// With the chain that comes of it.
    Processing(String),
    /// With the number of its certificate.
    Valid(usize),
}

pub struct Authorization {
    pub identifier: Value,
    pub token: String,
    pub status: &'static str,
    pub error: Option<String>,
}

pub const CHALLENGE_TYPES: [&str; 2] = ["http-01", "tls-alpn-01"];

impl Order {
    pub fn status(&self) -> &'static str {
        let all = &self.authorizations;
        match self.state {
            OrderState::Valid(_) => "valid",
            OrderState::Processing(_) => "processing",
            OrderState::Open if all.iter().any(|one| one.status == "invalid") => "invalid",
            OrderState::Open if all.iter().all(|one| one.status == "valid") => "ready",
            OrderState::Open => "pending",
        }
    }

    pub fn to_json(&self, base: &str, number: usize) -> Value {
        let all = &self.authorizations;
        let identifiers: Vec<_> = all.iter().map(|one| one.identifier.clone()).collect();
        let urls = (0..all.len()).map(|place| format!("{base}/authorization/{number}/{place}"));
        let mut order = json!({
            "status": self.status(),
            "expires": "2099-01-01T00:00:00Z",
            "identifiers": identifiers,
            "authorizations": urls.collect::<Vec<_>>(),
            "finalize": format!("{base}/finalize/{number}"),
        });
        if let OrderState::Valid(certificate) = self.state {
            order["certificate"] = json!(format!("{base}/certificate/{certificate}"));
        }
        if let Some(replaces) = &self.replaces {
            order["replaces"] = json!(replaces);
        }
        order
    }
}

impl Authorization {
    pub fn to_json(&self, base: &str, number: usize, place: usize, offered: &[&str]) -> Value {
        let challenges = offered
            .iter()
            .map(|kind| self.challenge(base, number, place, kind));
        json!({
            "identifier": self.identifier,
            "status": self.status,
            "expires": "2099-01-01T00:00:00Z",
            "challenges": challenges.collect::<Vec<_>>(),
        })
    }

    pub fn challenge(&self, base: &str, number: usize, place: usize, kind: &str) -> Value {
        let mut challenge = json!({
            "type": kind,
            "url": format!("{base}/challenge/{number}/{place}/{kind}"),
            "token": self.token,
            "status": self.status,
        });
        if let Some(error) = &self.error {
            challenge["error"] = json!({
                "type": "urn:ietf:params:acme:error:unauthorized",
                "detail": error,
                "status": 403,
            });
        }
        challenge
    }
}
