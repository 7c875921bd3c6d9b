//! Which of a CA's chains to keep: the one that leads to the preferred issuer, where there is one.
//! An alternate is a choice, never a need: one that cannot be had costs nothing.

use super::Run;
use crate::acme::jws::{self, Signer};
use crate::store::leaf::Leaf;

/// CAs have two or three chains; more are not looked at.
const MAX_ALTERNATES: usize = 8;

impl Run {
    /// `chain`, or the alternate that leads to the preferred issuer. `links`: as they came with it.
    pub(super) async fn preferred_chain(&self, chain: String, links: &[String]) -> String {
        let Some(wanted) = &self.job.config.preferred_chain else {
            return chain;
        };
        if leads_to(&chain, wanted) {
            return chain;
        }
        for url in alternates(links).into_iter().take(MAX_ALTERNATES) {
            match self.fetch_chain(&url).await {
                Ok(other) if leads_to(&other, wanted) => return other,
                Ok(_) => {}
                Err(error) => tracing::warn!(url, error, "cannot fetch an alternate chain"),
            }
        }
        tracing::warn!(
            order = self.what,
            preferred_chain = wanted,
            "no chain of the CA leads to the preferred issuer: its first one is kept"
        );
        chain
    }

    async fn fetch_chain(&self, url: &str) -> Result<String, String> {
        let key = self.job.session.key().map_err(|error| error.to_string())?;
        let signer = Signer::Account(self.account.id());
        let answer = jws::post(&self.http, &self.what, &key, signer, url, None)
            .await
            .map_err(|error| error.to_string())?;
        String::from_utf8(answer.into_body().to_vec()).map_err(|error| error.to_string())
    }
}

/// Whether a certificate of this PEM chain was issued by that common name.
fn leads_to(chain: &str, issuer: &str) -> bool {
    let Ok((_, chain)) = Leaf::from_chain_pem(chain.as_bytes()) else {
        return false;
    };
    chain.iter().any(|der| {
        let parsed = x509_parser::parse_x509_certificate(der);
        parsed.is_ok_and(|(_, certificate)| {
            let mut names = certificate.issuer().iter_common_name();
            names.any(|name| name.as_str() == Ok(issuer))
        })
    })
}

/// The targets of `rel="alternate"` in `Link` headers (RFC 8288, RFC 8555 section 7.4.2).
fn alternates(links: &[String]) -> Vec<String> {
    let each = links.iter().flat_map(|header| header.split(','));
    each.filter_map(|link| {
        let (target, parameters) = link.split_once(';')?;
        let is_alternate = parameters.split(';').any(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or_default();
            let value = value.trim().trim_matches('"');
            name.trim().eq_ignore_ascii_case("rel")
                && value
                    .split(' ')
                    .any(|it| it.eq_ignore_ascii_case("alternate"))
        });
        let target = target.trim().strip_prefix('<')?.strip_suffix('>')?;
        is_alternate.then(|| target.to_owned())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternates_are_found_in_links() {
        let links = [
            "<https://ca.test/dir>;rel=\"index\"".to_owned(),
            "<https://ca.test/c/1/1>; rel=\"alternate\"".to_owned(),
            "<https://ca.test/c/1/2>;title=x;rel=alternate, <https://ca.test/up>;rel=\"up\""
                .to_owned(),
            "nonsense".to_owned(),
        ];
        assert_eq!(
            alternates(&links),
            ["https://ca.test/c/1/1", "https://ca.test/c/1/2"]
        );
    }

    #[test]
    fn a_chain_leads_to_the_issuers_in_it() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::default();
        ca.distinguished_name
            .push(rcgen::DnType::CommonName, "Sample Root X1");
        let issuer = rcgen::Issuer::new(ca, key);
        let params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let leaf_key = rcgen::KeyPair::generate().unwrap();
        let chain = params.signed_by(&leaf_key, &issuer).unwrap().pem();
        assert!(leads_to(&chain, "Sample Root X1"));
        assert!(!leads_to(&chain, "Sample Root X2"));
        assert!(!leads_to("", "Sample Root X1"));
    }
}
