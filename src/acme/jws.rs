//! Requests that we sign ourselves (RFC 8555 section 6.2): for accounts, whose keys have to be on
//! disk before the CA hears of them, and for alternate chains, which `instant-acme` has no call
//! for. An account's key is one for ES256.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL;
use boring::bn::{BigNum, BigNumContext};
use boring::ec::EcKey;
use boring::ecdsa::EcdsaSig;
use boring::error::ErrorStack;
use boring::pkey::{PKey, Private};
use boring::sha::sha256;
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::error::{AcmeError, Class};
use super::http::{JobHttp, NONCE_ATTEMPTS, of_problem};

/// The width of a coordinate of P-256, and of each half of a signature.
const P256_BYTES: i32 = 32;

/// An account's key.
pub(super) struct AccountKey(EcKey<Private>);

/// As whom a request is signed.
#[derive(Clone, Copy)]
pub(super) enum Signer<'a> {
    /// The account with this URL.
    Account(&'a str),
    /// The key itself: the CA does not know it yet, or is to say whose it is.
    Key,
}

impl AccountKey {
    pub(super) fn from_pkcs8(der: &[u8]) -> Result<AccountKey, ErrorStack> {
        PKey::private_key_from_pkcs8(der)?.ec_key().map(AccountKey)
    }

    /// RFC 7517.
    pub(super) fn jwk(&self) -> Result<Value, ErrorStack> {
        let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
        let mut context = BigNumContext::new()?;
        self.0
            .public_key()
            .affine_coordinates_gfp(self.0.group(), &mut x, &mut y, &mut context)?;
        let coordinate = |number: &BigNum| {
            let bytes = number.to_vec_padded(P256_BYTES as usize)?;
            Ok::<_, ErrorStack>(BASE64URL.encode(bytes))
        };
        Ok(json!({"crv": "P-256", "kty": "EC", "x": coordinate(&x)?, "y": coordinate(&y)?}))
    }

    fn signature(&self, message: &str) -> Result<String, ErrorStack> {
        let signature = EcdsaSig::sign(&sha256(message.as_bytes()), &self.0)?;
        let mut bytes = signature.r().to_vec_padded(P256_BYTES as usize)?;
        bytes.extend(signature.s().to_vec_padded(P256_BYTES as usize)?);
        Ok(BASE64URL.encode(bytes))
    }

    /// A whole JWS in flattened JSON. `payload`: `None` for POST-as-GET.
    pub(super) fn sign(
        &self,
        signer: Signer<'_>,
        url: &str,
        nonce: Option<&str>,
        payload: Option<&Value>,
    ) -> Result<Value, ErrorStack> {
        let mut header = json!({"alg": "ES256", "url": url});
        match signer {
            Signer::Account(id) => header["kid"] = json!(id),
            Signer::Key => header["jwk"] = self.jwk()?,
        }
        if let Some(nonce) = nonce {
            header["nonce"] = json!(nonce);
        }
        let protected = BASE64URL.encode(header.to_string());
        let payload = payload.map_or_else(String::new, |it| BASE64URL.encode(it.to_string()));
        let signature = self.signature(&format!("{protected}.{payload}"))?;
        Ok(json!({"protected": protected, "payload": payload, "signature": signature}))
    }
}

/// The proof that whoever makes the account may use the external one (RFC 8555 section 7.3.4).
pub(super) fn external_binding(
    jwk: &Value,
    url: &str,
    kid: &str,
    hmac_key: &[u8],
) -> Result<Value, ErrorStack> {
    let header = json!({"alg": "HS256", "kid": kid, "url": url});
    let protected = BASE64URL.encode(header.to_string());
    let payload = BASE64URL.encode(jwk.to_string());
    let message = format!("{protected}.{payload}");
    let mac = boring::hash::hmac_sha256(hmac_key, message.as_bytes())?;
    Ok(json!({
        "protected": protected,
        "payload": payload,
        "signature": BASE64URL.encode(mac),
    }))
}

/// Sends a signed request; a refused nonce is tried again. Anything but success is an error, with
/// the CA's own words.
pub(super) async fn post(
    http: &JobHttp,
    what: &str,
    key: &AccountKey,
    signer: Signer<'_>,
    url: &str,
    payload: Option<&Value>,
) -> Result<Response<Bytes>, AcmeError> {
    for attempt in 1.. {
        let answer = post_once(http, what, key, signer, url, payload).await?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let error = refusal(http, what, answer.status(), answer.body());
        if !error.is("badNonce") || attempt >= NONCE_ATTEMPTS {
            return Err(error);
        }
    }
    Err(AcmeError::new(Class::Retryable, what, "no nonce was good"))
}

async fn post_once(
    http: &JobHttp,
    what: &str,
    key: &AccountKey,
    signer: Signer<'_>,
    url: &str,
    payload: Option<&Value>,
) -> Result<Response<Bytes>, AcmeError> {
    let unreachable = |error: super::http::HttpError| AcmeError {
        unreachable: true,
        ..AcmeError::new(Class::Retryable, what, error.to_string())
    };
    let nonce = http.nonce().await.map_err(unreachable)?;
    let nonce = nonce.ok_or_else(|| {
        AcmeError::new(
            Class::Retryable,
            what,
            "the CA gives no nonce (RFC 8555 section 7.2)",
        )
    })?;
    let body = key
        .sign(signer, url, Some(&nonce), payload)
        .map_err(|error| AcmeError::new(Class::Operator, what, format!("cannot sign: {error}")))?;
    http.post_jose(url, body.to_string())
        .await
        .map_err(unreachable)
}

fn refusal(http: &JobHttp, what: &str, status: StatusCode, body: &[u8]) -> AcmeError {
    let note = http.last();
    let server_error = status.is_server_error();
    let mut error = match serde_json::from_slice::<instant_acme::Problem>(body) {
        Ok(problem) => of_problem(what, &problem, Some(status.as_u16())),
        Err(_) => AcmeError::new(
            super::error::classify(None, Some(status.as_u16())),
            what,
            format!("the CA answered HTTP {status} and no problem document"),
        ),
    };
    error.unreachable |= server_error;
    error.retry_after = note.retry_after;
    error
}

#[cfg(test)]
mod tests {
    use boring::pkey::Public;

    use super::*;

    fn key() -> AccountKey {
        let (_, der) = instant_acme::Key::generate_pkcs8().unwrap();
        AccountKey::from_pkcs8(der.secret_pkcs8_der()).unwrap()
    }

    fn public(jwk: &Value) -> EcKey<Public> {
        let group = boring::ec::EcGroup::from_curve_name(boring::nid::Nid::X9_62_PRIME256V1);
        let number = |name: &str| {
            let bytes = BASE64URL.decode(jwk[name].as_str().unwrap()).unwrap();
            BigNum::from_slice(&bytes).unwrap()
        };
        EcKey::from_public_key_affine_coordinates(&group.unwrap(), &number("x"), &number("y"))
            .unwrap()
    }

    #[test]
    fn a_signature_is_by_the_key_in_the_header() {
        let key = key();
        let payload = json!({"a": 1});
        let jws = key
            .sign(Signer::Key, "https://ca.test/x", Some("n"), Some(&payload))
            .unwrap();
        let part = |name: &str| jws[name].as_str().unwrap().to_owned();
        let header = BASE64URL.decode(part("protected")).unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        assert_eq!(header["alg"], "ES256");
        assert_eq!(
            (&header["url"], &header["nonce"]),
            (&json!("https://ca.test/x"), &json!("n"))
        );
        let signature = BASE64URL.decode(part("signature")).unwrap();
        let half = |range| BigNum::from_slice(&signature[range]).unwrap();
        let signature = EcdsaSig::from_private_components(half(0..32), half(32..64)).unwrap();
        let message = format!("{}.{}", part("protected"), part("payload"));
        let digest = sha256(message.as_bytes());
        assert!(signature.verify(&digest, &public(&header["jwk"])).unwrap());
    }

    #[test]
    fn post_as_get_has_an_empty_payload_and_names_the_account() {
        let id = "https://ca.test/acct/1";
        let jws = key()
            .sign(Signer::Account(id), "u", Some("n"), None)
            .unwrap();
        assert_eq!(jws["payload"], "");
        let header = BASE64URL
            .decode(jws["protected"].as_str().unwrap())
            .unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        assert_eq!(header["kid"], id);
        assert!(header.get("jwk").is_none());
    }

    #[test]
    fn the_binding_is_by_the_external_key() {
        let binding = external_binding(&json!({"kty": "EC"}), "u", "kid-1", b"secret").unwrap();
        let header = BASE64URL
            .decode(binding["protected"].as_str().unwrap())
            .unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        assert_eq!(header, json!({"alg": "HS256", "kid": "kid-1", "url": "u"}));
        let mac = BASE64URL
            .decode(binding["signature"].as_str().unwrap())
            .unwrap();
        assert_eq!(mac.len(), 32);
    }
}
