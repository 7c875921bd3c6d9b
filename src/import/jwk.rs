//! A private key as a JWK (RFC 7517, RFC 7518 section 6), as certbot keeps those of its accounts.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use boring::bn::BigNum;
use boring::ec::{EcGroup, EcKey, EcPoint};
use boring::nid::Nid;
use boring::pkey::{PKey, Private};
use boring::rsa::Rsa;
use serde_json::Value;

/// The key; the error never has a part of it.
pub(super) fn private_key(jwk: &Value) -> Result<PKey<Private>, String> {
    match jwk["kty"].as_str() {
        Some("RSA") => rsa(jwk),
        Some("EC") => ec(jwk),
        Some(other) => Err(format!("it is a JWK of the kind {other}, not RSA or EC")),
        None => Err("it is no JWK: it has no kty".to_owned()),
    }
}

fn number(jwk: &Value, name: &str) -> Result<BigNum, String> {
    let broken = || format!("its {name} is missing or no number");
    let text = jwk[name].as_str().ok_or_else(broken)?;
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('='));
    BigNum::from_slice(&bytes.map_err(|_| broken())?).map_err(|_| broken())
}

fn rsa(jwk: &Value) -> Result<PKey<Private>, String> {
    let number = |name: &str| number(jwk, name);
    let key = Rsa::from_private_components(
        number("n")?,
        number("e")?,
        number("d")?,
        number("p")?,
        number("q")?,
        number("dp")?,
        number("dq")?,
        number("qi")?,
    );
    // A key that is not checked would sign, in vain.
    let checked = key.ok().filter(|key| key.check_key().unwrap_or(false));
    let key = checked.and_then(|key| PKey::from_rsa(key).ok());
    key.ok_or_else(|| "its numbers make no RSA key".to_owned())
}

fn ec(jwk: &Value) -> Result<PKey<Private>, String> {
    let curve = match jwk["crv"].as_str() {
        Some("P-256") => Nid::X9_62_PRIME256V1,
        Some("P-384") => Nid::SECP384R1,
        other => {
            let other = other.unwrap_or("none");
            return Err(format!("its curve is {other}, not P-256 or P-384"));
        }
    };
    let secret = number(jwk, "d")?;
    let make = || {
        let group = EcGroup::from_curve_name(curve)?;
        let mut point = EcPoint::new(&group)?;
        let mut context = boring::bn::BigNumContext::new()?;
        point.mul_generator(&group, &secret, &mut context)?;
        let key = EcKey::from_private_components(&group, &secret, &point)?;
        key.check_key()?;
        PKey::from_ec_key(key)
    };
    make().map_err(|_: boring::error::ErrorStack| "its numbers make no key".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(number: &boring::bn::BigNumRef) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(number.to_vec())
    }

    #[test]
    fn both_kinds_come_back() {
        let key = Rsa::generate(2048).unwrap();
        let factor = |it: Option<&boring::bn::BigNumRef>| text(it.unwrap());
        let mut jwk = json!({
            "kty": "RSA", "n": text(key.n()), "e": text(key.e()), "d": text(key.d()),
            "p": factor(key.p()), "q": factor(key.q()), "dp": factor(key.dmp1()),
            "dq": factor(key.dmq1()), "qi": factor(key.iqmp()),
        });
        let expected = PKey::from_rsa(key).unwrap();
        assert!(private_key(&jwk).unwrap().public_eq(&expected));
        jwk["d"] = json!("AAAA");
        assert!(private_key(&jwk).is_err());

        let group = EcGroup::from_curve_name(Nid::SECP384R1).unwrap();
        let key = EcKey::generate(&group).unwrap();
        let jwk = json!({"kty": "EC", "crv": "P-384", "d": text(key.private_key())});
        let expected = PKey::from_ec_key(key).unwrap();
        assert!(private_key(&jwk).unwrap().public_eq(&expected));
    }

    #[test]
    fn what_is_no_key_is_said() {
        for (jwk, expected) in [
            (json!({}), "no kty"),
            (json!({"kty": "oct"}), "oct"),
            (json!({"kty": "EC", "crv": "P-521", "d": "AQ"}), "P-521"),
            (json!({"kty": "RSA", "n": 1}), "its n"),
        ] {
            let error = private_key(&jwk).err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
    }
}
