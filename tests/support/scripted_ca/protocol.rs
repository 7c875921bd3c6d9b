//! RFC 8555 on the wire: one handler, which logs, then does what the script says, then the rest.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::book::{Authorization, Book, Order, OrderState};
use super::jws::{Signed, random_text, thumbprint};
use super::script::{Kind, Validation};
use super::{Logged, Shared, issuing, validation};

/// A problem document (RFC 7807) of an ACME kind.
#[derive(Clone, Debug)]
pub struct Problem {
    pub status: u16,
    /// Without `urn:ietf:params:acme:error:`.
    pub kind: &'static str,
    pub detail: String,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "type": format!("urn:ietf:params:acme:error:{}", self.kind),
            "detail": self.detail,
            "status": self.status,
        });
        let status = StatusCode::from_u16(self.status).expect("a status");
        let media = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, media, body.to_string()).into_response()
    }
}

pub fn problem(status: u16, kind: &'static str, detail: impl Into<String>) -> Problem {
    let detail = detail.into();
    Problem {
        status,
        kind,
        detail,
    }
}

fn malformed(detail: impl Into<String>) -> Problem {
    problem(400, "malformed", detail)
}

pub async fn handle(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let path = uri.path().to_owned();
    let kind = Kind::of(&path);
    shared.log.lock().unwrap().push(Logged {
        method: method.to_string(),
        path: path.clone(),
        kind,
        at: Instant::now(),
    });
    let fault = shared.script.lock().unwrap().fault_for(kind);
    let mut response = match fault {
        Some(fault) => fault.respond().await,
        None => answer(&shared, kind, &path, &body)
            .await
            .unwrap_or_else(Problem::into_response),
    };
    let nonce = random_text();
    let value = HeaderValue::from_str(&nonce).expect("base64url");
    response.headers_mut().insert("replay-nonce", value);
    shared.book.lock().unwrap().nonces.insert(nonce);
    response
}

type Answer = Result<Response, Problem>;

async fn answer(shared: &Shared, kind: Kind, path: &str, body: &[u8]) -> Answer {
    let numbers: Vec<usize> = path
        .split('/')
        .filter_map(|part| part.parse().ok())
        .collect();
    match kind {
        Kind::Directory => return Ok(shared.directory()),
        Kind::NewNonce => return Ok(StatusCode::OK.into_response()),
        Kind::RenewalInfo => return shared.renewal_info(),
        Kind::Other => return Err(problem(404, "malformed", "nothing here")),
        _ => {}
    }
    let signed = Signed::parse(body).map_err(malformed)?;
    shared.check_nonce(&signed)?;
    if signed.text("url") != format!("{}{path}", shared.base) {
        return Err(malformed("the url in the header is not this one"));
    }
    if kind == Kind::NewAccount {
        return shared.new_account(&signed);
    }
    let account = shared.account_of(&signed)?;
    let number = || {
        numbers
            .first()
            .copied()
            .ok_or_else(|| malformed("no number"))
    };
    match kind {
        Kind::NewOrder => shared.new_order(account, &signed.payload),
        Kind::Order => shared.order(number()?),
        Kind::Authorization => shared.authorization(&numbers),
        Kind::Challenge => shared.challenge(account, &numbers, path).await,
        Kind::Finalize => shared.finalize(number()?, &signed.payload),
        Kind::Certificate => shared.certificate(number()?),
        _ => Ok(StatusCode::OK.into_response()),
    }
}

impl Shared {
    fn directory(&self) -> Response {
        let url = |name: &str| format!("{}/{name}", self.base);
        let mut directory = json!({
            "newNonce": url("new-nonce"),
            "newAccount": url("new-account"),
            "newOrder": url("new-order"),
            "revokeCert": url("revoke"),
            "keyChange": url("key-change"),
            "meta": {"termsOfService": url("terms")},
        });
        if self.script.lock().unwrap().renewal_info.is_some() {
            directory["renewalInfo"] = json!(url("renewal-info"));
        }
        axum::Json(directory).into_response()
    }

    fn renewal_info(&self) -> Answer {
        let script = self.script.lock().unwrap();
        let none = || problem(404, "malformed", "no renewal information here");
        let info = script.renewal_info.clone().ok_or_else(none)?;
        let media = [(header::CONTENT_TYPE, "application/json")];
        let mut response = (media, info.body).into_response();
        if let Some(value) = info.retry_after {
            let value = value.parse().expect("a header value");
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        Ok(response)
    }

    fn check_nonce(&self, signed: &Signed) -> Result<(), Problem> {
        let known = self
            .book
            .lock()
            .unwrap()
            .nonces
            .remove(signed.text("nonce"));
        let mut script = self.script.lock().unwrap();
        let refused = script.bad_nonces > 0;
        script.bad_nonces = script.bad_nonces.saturating_sub(1);
        match known && !refused {
            true => Ok(()),
            false => Err(problem(400, "badNonce", "this nonce is not known")),
        }
    }

    fn account_url(&self, number: usize) -> String {
        format!("{}/account/{number}", self.base)
    }

    fn new_account(&self, signed: &Signed) -> Answer {
        let jwk = &signed.header["jwk"];
        signed.verify(jwk).map_err(malformed)?;
        let print = thumbprint(jwk);
        let mut book = self.book.lock().unwrap();
        let known = book.accounts.iter().position(|one| *one == print);
        if known.is_none() && signed.payload["onlyReturnExisting"] == true {
            return Err(problem(
                400,
                "accountDoesNotExist",
                "no account with this key",
            ));
        }
        let number = known.unwrap_or_else(|| {
            book.accounts.push(print);
            book.keys.push(jwk.clone());
            book.accounts.len() - 1
        });
        let status = if known.is_some() {
            StatusCode::OK
        } else {
            StatusCode::CREATED
        };
        let place = [(header::LOCATION, self.account_url(number))];
        Ok((status, place, axum::Json(json!({"status": "valid"}))).into_response())
    }

    fn account_of(&self, signed: &Signed) -> Result<usize, Problem> {
        let unknown = || problem(400, "accountDoesNotExist", "no account with this key");
        let number = signed.text("kid").rsplit('/').next();
        let number: usize = number
            .and_then(|text| text.parse().ok())
            .ok_or_else(unknown)?;
        let key = self.book.lock().unwrap().keys.get(number).cloned();
        signed
            .verify(&key.ok_or_else(unknown)?)
            .map_err(malformed)?;
        Ok(number)
    }

    fn new_order(&self, account: usize, payload: &Value) -> Answer {
        let replaces = payload["replaces"].as_str().map(str::to_owned);
        if replaces.is_some() && self.script.lock().unwrap().already_replaced {
            return Err(problem(
                409,
                "alreadyReplaced",
                "that one was replaced before",
            ));
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

    fn order(&self, number: usize) -> Answer {
        let book = self.book.lock().unwrap();
        let order = book
            .orders
            .get(number)
            .ok_or_else(|| malformed("no such order"))?;
        let body = order.to_json(&self.base, number);
        Ok((self.order_place(number), axum::Json(body)).into_response())
    }

    fn authorization(&self, numbers: &[usize]) -> Answer {
        let mut book = self.book.lock().unwrap();
        let (number, place) = two(numbers)?;
        let found = find(&mut book, number, place)?;
        Ok(axum::Json(found.to_json(&self.base, number, place)).into_response())
    }

    async fn challenge(&self, account: usize, numbers: &[usize], path: &str) -> Answer {
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
        let mode = self.script.lock().unwrap().validation;
        let verdict = match mode {
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

    async fn validate(&self, kind: &str, name: &str, token: &str, key: &str) -> Result<(), String> {
        let (http, https) = self.proxy;
        match kind {
            "http-01" => validation::http01(http, name, token, key).await,
            _ => validation::tls_alpn01(https, name, key).await,
        }
    }

    fn finalize(&self, number: usize, payload: &Value) -> Answer {
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
        let chain = issuing::issue(&self.ca, &script, csr, &names).map_err(bad_csr)?;
        order.state = match script.stuck_in_processing {
            true => OrderState::Processing,
            false => {
                certificates.push(chain);
                OrderState::Valid(certificates.len() - 1)
            }
        };
        let body = order.to_json(&self.base, number);
        Ok((self.order_place(number), axum::Json(body)).into_response())
    }

    fn certificate(&self, number: usize) -> Answer {
        let book = self.book.lock().unwrap();
        let chain = book.certificates.get(number).cloned();
        let chain = chain.ok_or_else(|| malformed("no such certificate"))?;
        let media = [(header::CONTENT_TYPE, "application/pem-certificate-chain")];
        Ok((media, chain).into_response())
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
