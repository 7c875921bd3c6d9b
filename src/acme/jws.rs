//! Requests that we sign ourselves (RFC 8555 section 6.2): for accounts, whose keys have to be on
//! disk before the CA hears of them, for revocations and alternate chains, which `instant-acme` has
//! no call for, and all of them where the account's key is of a kind that it does not sign with:
//! RSA and P-384 keys, as accounts taken over from other clients have.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL;
use boring::bn::{BigNum, BigNumContext};
use boring::ec::EcKey;
use boring::ecdsa::EcdsaSig;
use boring::error::ErrorStack;
use boring::hash::MessageDigest;
use boring::nid::Nid;
use boring::pkey::{Id, PKey, Private};
use boring::rsa::Rsa;
use boring::sha::{sha256, sha384};
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::error::{AcmeError, Class};
use super::http::{JobHttp, NONCE_ATTEMPTS, of_problem};

/// CAs take RSA keys of accounts between these sizes.
const RSA_BITS: std::ops::RangeInclusive<u32> = 2048..=4096;

/// A key that signs for an account, or for the certificate that it belongs to.
pub(super) struct AccountKey(Kind);

enum Kind {
    Ec(EcKey<Private>, Curve),
    Rsa(Rsa<Private>),
}

/// RFC 7518 section 3.4.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
}

/// Why a key does not sign.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyError {
    #[error(transparent)]
    Crypto(#[from] ErrorStack),
    #[error("it is neither P-256, P-384 nor RSA of 2,048 to 4,096 bits")]
    Unsupported,
}

/// As whom a request is signed.
#[derive(Clone, Copy)]
pub(super) enum Signer<'a> {
    /// The account with this URL.
    Account(&'a str),
    /// The key itself: the CA does not know it yet, is to say whose it is, or finds it in the
    /// certificate that the request is about.
    Key,
}

impl Curve {
    fn name(self) -> &'static str {
        match self {
            Curve::P256 => "P-256",
            Curve::P384 => "P-384",
        }
    }

    /// The width of a coordinate, and of each half of a signature.
    fn bytes(self) -> usize {
        match self {
            Curve::P256 => 32,
            Curve::P384 => 48,
        }
    }
}

impl AccountKey {
    pub(super) fn from_pkcs8(der: &[u8]) -> Result<AccountKey, KeyError> {
        AccountKey::from_private_key(&PKey::private_key_from_pkcs8(der)?)
    }

    /// Any form of PEM that is not encrypted.
    pub(super) fn from_pem(pem: &[u8]) -> Result<AccountKey, KeyError> {
        AccountKey::from_private_key(&PKey::private_key_from_pem(pem)?)
    }

    pub(super) fn from_private_key(key: &PKey<Private>) -> Result<AccountKey, KeyError> {
        match key.id() {
            Id::EC => {
                let key = key.ec_key()?;
                let curve = match key.group().curve_name() {
                    Some(Nid::X9_62_PRIME256V1) => Curve::P256,
                    Some(Nid::SECP384R1) => Curve::P384,
                    _ => return Err(KeyError::Unsupported),
                };
                Ok(AccountKey(Kind::Ec(key, curve)))
            }
            Id::RSA if RSA_BITS.contains(&key.bits()) => Ok(AccountKey(Kind::Rsa(key.rsa()?))),
            _ => Err(KeyError::Unsupported),
        }
    }

    /// Whether `instant-acme` can sign with it.
    pub(super) fn is_es256(&self) -> bool {
        matches!(self.0, Kind::Ec(_, Curve::P256))
    }

    fn algorithm(&self) -> &'static str {
        match self.0 {
            Kind::Ec(_, Curve::P256) => "ES256",
            Kind::Ec(_, Curve::P384) => "ES384",
            Kind::Rsa(_) => "RS256",
        }
    }

    /// RFC 7517.
    pub(super) fn jwk(&self) -> Result<Value, ErrorStack> {
        match &self.0 {
            Kind::Ec(key, curve) => {
                let [x, y] = coordinates(key, *curve)?;
                Ok(json!({"crv": curve.name(), "kty": "EC", "x": x, "y": y}))
            }
            Kind::Rsa(key) => {
                let number = |number: &boring::bn::BigNumRef| BASE64URL.encode(number.to_vec());
                Ok(json!({"e": number(key.e()), "kty": "RSA", "n": number(key.n())}))
            }
        }
    }

    /// RFC 7638: the members that a key needs, in the order of their names.
    pub(super) fn thumbprint(&self) -> Result<String, ErrorStack> {
        let jwk = self.jwk()?;
        let members: &[&str] = match self.0 {
            Kind::Ec(..) => &["crv", "kty", "x", "y"],
            Kind::Rsa(_) => &["e", "kty", "n"],
        };
        let members = members.iter().map(|name| format!("{name:?}:{}", jwk[name]));
        let text = format!("{{{}}}", members.collect::<Vec<_>>().join(","));
        Ok(BASE64URL.encode(sha256(text.as_bytes())))
    }

    fn signature(&self, message: &str) -> Result<String, ErrorStack> {
        let message = message.as_bytes();
        let bytes = match &self.0 {
            Kind::Ec(key, Curve::P256) => ecdsa(key, &sha256(message), Curve::P256)?,
            Kind::Ec(key, Curve::P384) => ecdsa(key, &sha384(message), Curve::P384)?,
            Kind::Rsa(key) => {
                let key = PKey::from_rsa(key.clone())?;
                let mut signer = boring::sign::Signer::new(MessageDigest::sha256(), &key)?;
                signer.sign_oneshot_to_vec(message)?
            }
        };
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
        let mut header = json!({"url": url});
        match signer {
            Signer::Account(id) => header["kid"] = json!(id),
            Signer::Key => header["jwk"] = self.jwk()?,
        }
        if let Some(nonce) = nonce {
            header["nonce"] = json!(nonce);
        }
        let payload = payload.map_or_else(String::new, |it| BASE64URL.encode(it.to_string()));
        self.seal(header, &payload)
    }

    /// The same request as `body`, which another key has signed, by this one.
    pub(super) fn sign_again(&self, body: &[u8]) -> Option<Bytes> {
        let jws: Value = serde_json::from_slice(body).ok()?;
        let header = BASE64URL.decode(jws["protected"].as_str()?).ok()?;
        let mut header: Value = serde_json::from_slice(&header).ok()?;
        if header.get("jwk").is_some() {
            header["jwk"] = self.jwk().ok()?;
        }
        let sealed = self.seal(header, jws["payload"].as_str()?).ok()?;
        Some(Bytes::from(sealed.to_string()))
    }

    fn seal(&self, mut header: Value, payload: &str) -> Result<Value, ErrorStack> {
        header["alg"] = json!(self.algorithm());
        let protected = BASE64URL.encode(header.to_string());
        let signature = self.signature(&format!("{protected}.{payload}"))?;
        Ok(json!({"protected": protected, "payload": payload, "signature": signature}))
    }
}

fn coordinates(key: &EcKey<Private>, curve: Curve) -> Result<[String; 2], ErrorStack> {
    let (mut x, mut y) = (BigNum::new()?, BigNum::new()?);
    let mut context = BigNumContext::new()?;
    key.public_key()
        .affine_coordinates_gfp(key.group(), &mut x, &mut y, &mut context)?;
    let encode = |number: &BigNum| Ok(BASE64URL.encode(number.to_vec_padded(curve.bytes())?));
    Ok([encode(&x)?, encode(&y)?])
}

fn ecdsa(key: &EcKey<Private>, digest: &[u8], curve: Curve) -> Result<Vec<u8>, ErrorStack> {
    let signature = EcdsaSig::sign(digest, key)?;
    let mut bytes = signature.r().to_vec_padded(curve.bytes())?;
    bytes.extend(signature.s().to_vec_padded(curve.bytes())?);
    Ok(bytes)
}

/// What shows control over a name: a challenge's token, bound to the account (RFC 8555 section
/// 8.1).
pub(super) struct KeyAuthorization(String);

impl KeyAuthorization {
    pub(super) fn new(token: &str, thumbprint: &str) -> KeyAuthorization {
        KeyAuthorization(format!("{token}.{thumbprint}"))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        sha256(self.0.as_bytes())
    }

    /// RFC 8555 section 8.4.
    pub(super) fn dns_value(&self) -> String {
        BASE64URL.encode(self.digest())
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

    fn pem_key(pem: &[u8]) -> AccountKey {
        AccountKey::from_pem(pem).unwrap()
    }

    #[test]
    fn keys_of_every_kind_sign_as_their_algorithm_says() {
        let rsa = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let group = boring::ec::EcGroup::from_curve_name(Nid::SECP384R1).unwrap();
        let p384 = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        for (key, algorithm, length) in [(rsa, "RS256", 256), (p384, "ES384", 96)] {
            let own = pem_key(&key.private_key_to_pem_pkcs8().unwrap());
            let jws = own.sign(Signer::Key, "u", Some("n"), None).unwrap();
            let header = BASE64URL
                .decode(jws["protected"].as_str().unwrap())
                .unwrap();
            let header: Value = serde_json::from_slice(&header).unwrap();
            assert_eq!(header["alg"], algorithm);
            let signature = BASE64URL
                .decode(jws["signature"].as_str().unwrap())
                .unwrap();
            assert_eq!(signature.len(), length);
            let message = format!("{}.", jws["protected"].as_str().unwrap());
            let good = match own.0 {
                Kind::Rsa(_) => {
                    let digest = MessageDigest::sha256();
                    let mut verifier = boring::sign::Verifier::new(digest, &key).unwrap();
                    verifier
                        .verify_oneshot(&signature, message.as_bytes())
                        .unwrap()
                }
                Kind::Ec(..) => {
                    let half = |range| BigNum::from_slice(&signature[range]).unwrap();
                    EcdsaSig::from_private_components(half(0..48), half(48..96))
                        .unwrap()
                        .verify(&sha384(message.as_bytes()), &key.ec_key().unwrap())
                        .unwrap()
                }
            };
            assert!(good, "{algorithm}");
            assert_eq!(own.thumbprint().unwrap().len(), 43);
        }
        let small = PKey::from_rsa(Rsa::generate(1024).unwrap()).unwrap();
        let small = AccountKey::from_private_key(&small);
        assert!(matches!(small, Err(KeyError::Unsupported)));
    }

    #[test]
    fn a_request_is_signed_again_as_it_was() {
        let first = key();
        let payload = json!({"a": 1});
        let jws = first.sign(Signer::Key, "u", Some("n"), Some(&payload));
        let second = key();
        let again = second
            .sign_again(jws.unwrap().to_string().as_bytes())
            .unwrap();
        let again: Value = serde_json::from_slice(&again).unwrap();
        let expected = second
            .sign(Signer::Key, "u", Some("n"), Some(&payload))
            .unwrap();
        // All but the signature, which has a random part.
        assert_eq!(again["protected"], expected["protected"]);
        assert_eq!(again["payload"], expected["payload"]);
        assert!(second.sign_again(b"{}").is_none());
    }

    #[test]
    fn the_key_authorization_is_instant_acmes() {
        let authorization = KeyAuthorization::new("token", "thumb");
        assert_eq!(authorization.as_str(), "token.thumb");
        assert_eq!(
            authorization.dns_value(),
            BASE64URL.encode(sha256(b"token.thumb"))
        );
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
