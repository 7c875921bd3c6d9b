//! Orders from their placing to their certificate (RFC 8555 section 7.4).

use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::Value;

use super::book::{Authorization, Book, Order, OrderState};
use super::jws::random_text;
use super::problem::{Problem, malformed, problem};
use super::protocol::Answer;
use super::script::Validation;
use super::{Shared, issuing, validation};

impl Shared {
    pub fn new_order(&self, account: usize, payload: &Value) -> Answer {
        let replaces = payload["replaces"].as_str().map(str::to_owned);
        let refusal = self.script.lock().unwrap().refuse_replaces.clone();
        if let Some(refusal) = refusal.filter(|_| replaces.is_some()) {
            return Err(refusal);
        }
        let identifiers = payload["identifiers"].as_array();
        let identifiers = identifiers.filter(|all| !all.is_empty());
        let identifiers = identifiers.ok_or_else(|| malformed("no identifiers"))?;
        let pending = |identifier: &Value| Authorization {
            identifier: identifier.clone(),
            token: random_text(),
            status: "pending",
            error: None,
        };
        let order = Order {
            account,
            authorizations: identifiers.iter().map(pending).collect(),
            replaces,
            profile: payload["profile"].as_str().map(str::to_owned),
            state: OrderState::Open,
        };
        let mut book = self.book.lock().unwrap();
        let number = book.orders.len();
        let body = order.to_json(&self.base, number);
        book.orders.push(order);
        Ok((
            StatusCode::CREATED,
            self.order_place(number),
            axum::Json(body),
        )
            .into_response())
    }

    fn order_place(&self, number: usize) -> [(header::HeaderName, String); 1] {
        [(header::LOCATION, format!("{}/order/{number}", self.base))]
    }

    pub fn order(&self, number: usize) -> Answer {
        let book = self.book.lock().unwrap();
        let order = book
            .orders
            .get(number)
            .ok_or_else(|| malformed("no such order"))?;
        let body = order.to_json(&self.base, number);
        Ok((self.order_place(number), axum::Json(body)).into_response())
    }

    pub fn authorization(&self, numbers: &[usize]) -> Answer {
        let mut book = self.book.lock().unwrap();
        let (number, place) = two(numbers)?;
        let offered = self.script.lock().unwrap().challenges.clone();
        let found = find(&mut book, number, place)?;
        let body = found.to_json(&self.base, number, place, &offered);
        Ok(axum::Json(body).into_response())
    }

    pub async fn challenge(&self, account: usize, numbers: &[usize], path: &str) -> Answer {
        let (number, place) = two(numbers)?;
        let kind = path.rsplit('/').next().unwrap_or_default();
        let (name, token, key) = {
            let mut book = self.book.lock().unwrap();
            let print = book.accounts[account].clone();
            let found = find(&mut book, number, place)?;
            let name = found.identifier["value"].as_str().unwrap_or_default();
            let key = format!("{}.{print}", found.token);
            (name.to_owned(), found.token.clone(), key)
        };
        let (mode, fails) = {
            let script = self.script.lock().unwrap();
            (script.validation, script.failing.contains(&kind))
        };
        let verdict = match mode {
            _ if fails => Some(Err(format!("the script lets {kind} fail"))),
            Validation::Always => Some(Ok(())),
            Validation::PendingForEver => None,
            Validation::Never => Some(Err("the script says no".to_owned())),
            Validation::Real => Some(self.validate(kind, &name, &token, &key).await),
        };
        let mut book = self.book.lock().unwrap();
        let found = find(&mut book, number, place)?;
        if let Some(verdict) = verdict {
            found.status = if verdict.is_ok() { "valid" } else { "invalid" };
            found.error = verdict.err();
        }
        Ok(axum::Json(found.challenge(&self.base, number, place, kind)).into_response())
    }

    /// Of each pending authorization: order, place, name, token and key authorization.
    pub fn waiting(&self) -> Vec<(usize, usize, String, String, String)> {
        let book = self.book.lock().unwrap();
        let mut waiting = Vec::new();
        for (number, order) in book.orders.iter().enumerate() {
            let print = &book.accounts[order.account];
            let all = order.authorizations.iter().enumerate();
            for (place, one) in all.filter(|(_, one)| one.status == "pending") {
                let name = one.identifier["value"].as_str().unwrap_or_default();
                let key = format!("{}.{print}", one.token);
                waiting.push((number, place, name.to_owned(), one.token.clone(), key));
            }
        }
        waiting
    }

    pub async fn validate(
        &self,
        kind: &str,
        name: &str,
        token: &str,
        key: &str,
    ) -> Result<(), String> {
        let (http, https) = self.proxy;
        match kind {
            "http-01" => validation::http01(http, name, token, key).await,
            _ => validation::tls_alpn01(https, name, key).await,
        }
    }

    pub fn finalize(&self, number: usize, payload: &Value) -> Answer {
        let script = self.script.lock().unwrap();
        let mut book = self.book.lock().unwrap();
        let Book {
            orders,
            certificates,
            ..
        } = &mut *book;
        let order = orders
            .get_mut(number)
            .ok_or_else(|| malformed("no such order"))?;
        if order.status() != "ready" {
            return Err(problem(
                403,
                "orderNotReady",
                "its authorizations are not all valid",
            ));
        }
        let text = |one: &Authorization| one.identifier["value"].as_str().map(str::to_owned);
        let names: Vec<String> = order.authorizations.iter().filter_map(text).collect();
        let csr = payload["csr"].as_str().unwrap_or_default();
        let bad_csr = |why: String| problem(400, "badCSR", why);
        let chain = issuing::issue(&self.ca, &script, &self.base, csr, &names).map_err(bad_csr)?;
        order.state = match script.stuck_in_processing {
            true => OrderState::Processing(chain),
            false => {
                certificates.push(chain);
                OrderState::Valid(certificates.len() - 1)
            }
        };
        let body = order.to_json(&self.base, number);
        Ok((self.order_place(number), axum::Json(body)).into_response())
    }

    pub fn certificate(&self, number: usize) -> Answer {
        let book = self.book.lock().unwrap();
        let chain = book.certificates.get(number).cloned();
        let chain = chain.ok_or_else(|| malformed("no such certificate"))?;
        let media = [(header::CONTENT_TYPE, "application/pem-certificate-chain")];
        let mut response = (media, chain).into_response();
        if self.script.lock().unwrap().missing_alternate {
            let link = format!("<{}/certificate/404>;rel=\"alternate\"", self.base);
            let link = link.parse().expect("a header value");
            response.headers_mut().insert(header::LINK, link);
        }
        Ok(response)
    }
}

fn two(numbers: &[usize]) -> Result<(usize, usize), Problem> {
    match numbers {
        [number, place] => Ok((*number, *place)),
        _ => Err(malformed("no such path")),
    }
}

fn find(book: &mut Book, number: usize, place: usize) -> Result<&mut Authorization, Problem> {
    let order = book.orders.get_mut(number);
    let found = order.and_then(|order| order.authorizations.get_mut(place));
    found.ok_or_else(|| malformed("no such authorization"))
}
