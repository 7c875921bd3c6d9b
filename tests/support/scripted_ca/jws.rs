//! Signed requests: JWS in flattened JSON (RFC 8555 section 6.2), ES256 only.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

/// A request whose form was right; its signature is not checked yet.
pub struct Signed {
    pub header: Value,
    /// `Null` for POST-as-GET.
    pub payload: Value,
    message: String,
    signature: Vec<u8>,
}

impl Signed {
    pub fn parse(body: &[u8]) -> Result<Signed, String> {
        let outer: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let part = |name: &str| outer[name].as_str().ok_or(format!("no {name}"));
        let (protected, payload) = (part("protected")?, part("payload")?);
        let header = serde_json::from_slice(&decode(protected)?);
        let payload_bytes = decode(payload)?;
        let parsed = match payload_bytes.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&payload_bytes).map_err(|error| error.to_string())?,
        };
        Ok(Signed {
            header: header.map_err(|error| error.to_string())?,
            payload: parsed,
            message: format!("{protected}.{payload}"),
            signature: decode(part("signature")?)?,
        })
    }

    pub fn text(&self, name: &str) -> &str {
        self.header[name].as_str().unwrap_or_default()
    }

    pub fn verify(&self, jwk: &Value) -> Result<(), String> {
        if self.text("alg") != "ES256" {
            return Err(format!(
                "algorithm {} is not spoken here",
                self.header["alg"]
            ));
        }
        let mut point = vec![4];
        point.extend(decode(jwk["x"].as_str().unwrap_or_default())?);
        point.extend(decode(jwk["y"].as_str().unwrap_or_default())?);
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
        let verdict = key.verify(self.message.as_bytes(), &self.signature);
        verdict.map_err(|_| "the signature is wrong".to_owned())
    }
}

/// RFC 7638, for an EC key.
pub fn thumbprint(jwk: &Value) -> String {
    let canonical = format!(
        r#"{{"crv":{},"kty":{},"x":{},"y":{}}}"#,
        jwk["crv"], jwk["kty"], jwk["x"], jwk["y"]
    );
    encode(digest(&SHA256, canonical.as_bytes()).as_ref())
}

pub fn decode(text: &str) -> Result<Vec<u8>, String> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|error| error.to_string())
}

pub fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub fn random_text() -> String {
    encode(&rand::random::<[u8; 16]>())
}
