//! The cookie that keeps a client at its upstream. It names the upstream by a hash, which says
//! nothing of its address to whoever does not know the addresses, and with a secret to nobody.

use boring::hash::{MessageDigest, hash, hmac_sha256};

use crate::config::StickyCookie;
use crate::message::{Known, RequestHead};

/// Bytes of a hash that stand for an upstream.
const ID_BYTES: usize = 12;

/// The cookies of one pool.
pub struct Cookies {
    settings: StickyCookie,
    /// What names each upstream.
    ids: Box<[String]>,
}

impl Cookies {
    pub fn new<'l>(settings: &StickyCookie, labels: impl Iterator<Item = &'l str>) -> Cookies {
        Cookies {
            ids: labels
                .map(|label| id(label, settings.secret.as_deref()))
                .collect(),
            settings: settings.clone(),
        }
    }

    /// The upstream that a request's cookie names.
    pub fn upstream(&self, request: &RequestHead) -> Option<usize> {
        let value = cookie(request, &self.settings.name)?;
        self.ids.iter().position(|id| id.as_bytes() == value)
    }

    /// The value of a `Set-Cookie` field.
    pub fn set(&self, upstream: usize, secure: bool) -> String {
        let settings = &self.settings;
        let mut text = format!(
            "{}={}; Path={}; HttpOnly; SameSite={}",
            settings.name,
            self.ids[upstream],
            settings.path,
            settings.same_site.as_str()
        );
        if settings.secure.unwrap_or(secure) {
            text.push_str("; Secure");
        }
        if let Some(age) = settings.max_age {
            text.push_str(&format!("; Max-Age={}", age.as_secs()));
        }
        text
    }
}

/// The value of a request's cookie.
pub fn cookie<'r>(request: &'r RequestHead, name: &str) -> Option<&'r [u8]> {
    let pairs = request.fields.all(Known::Cookie);
    let mut pairs = pairs.flat_map(|value| value.split(|byte| *byte == b';'));
    pairs.find_map(|pair| {
        let pair = pair.trim_ascii();
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(value)
    })
}

fn id(label: &str, secret: Option<&str>) -> String {
    let bytes = match secret {
        None => hash(MessageDigest::sha256(), label.as_bytes()).map(|hash| hash.to_vec()),
        Some(secret) => hmac_sha256(secret.as_bytes(), label.as_bytes()).map(|it| it.to_vec()),
    };
    // Neither fails but for want of memory; then the cookie names nothing, and is made anew.
    let bytes = bytes.unwrap_or_default();
    let bytes = bytes.iter().take(ID_BYTES);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Limits;

    const LIMITS: Limits = Limits {
        bytes: 4096,
        fields: 10,
    };

    fn cookies(secret: Option<&str>) -> Cookies {
        let settings = StickyCookie {
            name: "up".into(),
            path: "/app".into(),
            secure: None,
            same_site: crate::config::SameSite::Strict,
            max_age: Some(std::time::Duration::from_secs(60)),
            secret: secret.map(Box::from),
        };
        Cookies::new(&settings, ["10.0.0.1:80", "10.0.0.2:80"].into_iter())
    }

    fn request(fields: &str) -> RequestHead {
        let text = format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n");
        let mut request = RequestHead::default();
        request.parse(text.as_bytes(), &LIMITS).unwrap();
        request
    }

    #[test]
    fn what_is_set_is_found_again() {
        for secret in [None, Some("s3cret")] {
            let cookies = cookies(secret);
            let set = cookies.set(1, true);
            let (pair, rest) = set.split_once("; ").unwrap();
            assert_eq!(
                rest,
                "Path=/app; HttpOnly; SameSite=Strict; Secure; Max-Age=60"
            );
            let found = cookies.upstream(&request(&format!("Cookie: a=b; {pair};c=d\r\n")));
            assert_eq!(found, Some(1));
            let found = cookies.upstream(&request(&format!("Cookie: x\r\nCookie: {pair}\r\n")));
            assert_eq!(found, Some(1));
        }
    }

    #[test]
    fn what_others_make_up_names_nothing() {
        for field in [
            "",
            "Cookie: up=\r\n",
            "Cookie: up=0; xup=1\r\n",
            "Cookie: up\r\n",
        ] {
            assert_eq!(cookies(None).upstream(&request(field)), None, "{field}");
        }
        let theirs = cookies(Some("another")).set(0, false);
        let pair = theirs.split(';').next().unwrap();
        let found = cookies(Some("s3cret")).upstream(&request(&format!("Cookie: {pair}\r\n")));
        assert_eq!(found, None);
    }

    #[test]
    fn no_address_is_told() {
        let set = cookies(None).set(0, false);
        assert!(!set.contains("10.0.0") && !set.contains("Secure"), "{set}");
    }
}
