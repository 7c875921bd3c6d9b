//! RFC 8555 on the wire: one handler, which logs, then does what the script says, then the rest.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::jws::{Signed, random_text, thumbprint};
use super::problem::{Problem, malformed, problem};
use super::script::{Kind, MOVED};
use super::{Logged, Shared};
use crate::support::clock;

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
    let (fault, moved, behind) = {
        let script = shared.script.lock().unwrap();
        let behind = script.behind_is_told.then_some(script.behind);
        (script.fault_for(kind), script.moved, behind)
    };
    let mut response = match fault {
        None if kind.is_in_the_directory() && moved != path.starts_with(MOVED) => {
            problem(404, "malformed", "nothing here any more").into_response()
        }
        Some(fault) => fault.respond().await,
        None => answer(&shared, kind, &path, &body)
            .await
            .unwrap_or_else(Problem::into_response),
    };
    let date = SystemTime::from(clock::now()) - behind.unwrap_or_default();
    let date = httpdate::fmt_http_date(date);
    let date = date.parse().expect("a header value");
    response.headers_mut().insert(header::DATE, date);
    let nonce = random_text();
    let value = HeaderValue::from_str(&nonce).expect("base64url");
    response.headers_mut().insert("replay-nonce", value);
    shared.book.lock().unwrap().nonces.insert(nonce);
    response
}

pub type Answer = Result<Response, Problem>;

async fn answer(shared: &Shared, kind: Kind, path: &str, body: &[u8]) -> Answer {
    let numbers: Vec<usize> = path
        .split('/')
        .filter_map(|part| part.parse().ok())
        .collect();
    match kind {
        Kind::Directory => return Ok(shared.directory()),
        Kind::NewNonce => return Ok(StatusCode::OK.into_response()),
        Kind::RenewalInfo => return shared.renewal_info(),
        Kind::Revocation => return shared.revocation(path, body),
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
        Kind::Account => Ok(shared.account(&signed.payload)),
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
        let script = self.script.lock().unwrap();
        let prefix = if script.moved { MOVED } else { "" };
        let url = |name: &str| format!("{}{prefix}/{name}", self.base);
        let mut directory = json!({
            "newNonce": url("new-nonce"),
            "newAccount": url("new-account"),
            "newOrder": url("new-order"),
            "revokeCert": url("revoke"),
            "keyChange": url("key-change"),
            "meta": {"termsOfService": url("terms")},
        });
        if script.renewal_info.is_some() {
            directory["renewalInfo"] = json!(url("renewal-info"));
        }
        for profile in &script.profiles {
            directory["meta"]["profiles"][*profile] = json!("a profile of the script");
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

    /// With what it is changed to, if it is (RFC 8555 section 7.3.2).
    fn account(&self, change: &Value) -> Response {
        let mut account = json!({"status": "valid"});
        if let Some(contact) = change.get("contact") {
            self.book.lock().unwrap().contacts.push(contact.clone());
            account["contact"] = contact.clone();
        }
        axum::Json(account).into_response()
    }

    fn account_of(&self, signed: &Signed) -> Result<usize, Problem> {
        let unknown = || problem(400, "accountDoesNotExist", "no account with this key");
        let number = signed.text("kid").rsplit('/').next();
        let number: usize = number
            .and_then(|text| text.parse().ok())
            .ok_or_else(unknown)?;
        let key = self.book.lock().unwrap().keys.get(number).cloned();
        let key = key.filter(|key| !key.is_null());
        signed
            .verify(&key.ok_or_else(unknown)?)
            .map_err(malformed)?;
        Ok(number)
    }
}
