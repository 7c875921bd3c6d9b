//! Which settings a CA is used under, so that what failed under others keeps nothing waiting: in a
//! live reload and across a restart alike. What is kept tells a change, and no secret.

use std::fs;
use std::sync::Arc;

use time::OffsetDateTime;

use super::{Authority, blocking};
use crate::acme::ledger::{Kind, Ledger, UsedSettings};
use crate::acme::renewal::Attempts;
use crate::clock;
use crate::config::{CertificateAuthority, ChallengeType, ExternalAccount};
use crate::store::StateDir;
use crate::store::sha2_hex::short_hash;

/// Of the digest, in hexadecimal digits.
const DIGITS: usize = 16;
/// Of a secret so little is kept, 16 bits, that nobody can find it out by that, whatever it is, while
/// it tells nearly every change.
const SECRET_DIGITS: usize = 4;

/// Of all that may heal a failure: not of how much is asked for, nor of what becomes of an answer.
fn digest(config: &CertificateAuthority) -> String {
    let roots = config.ca_certificate.as_ref();
    // The same file may have other roots in it.
    let roots = roots.map(|path| (path, fs::read_to_string(path).unwrap_or_default()));
    let external = config.external_account.as_ref();
    let settings = format!(
        "{:?}",
        (
            &config.directory,
            &config.email,
            roots,
            &config.challenges,
            config.key_type,
            (&config.profile, &config.address_profile),
            config.agree_to_terms,
            external.map(|it| &it.kid),
        )
    );
    let mut digest = short_hash(&settings, DIGITS);
    if let Some(external) = external {
        digest += "-";
        digest += &trace(external);
    }
    digest
}

fn trace(external: &ExternalAccount) -> String {
    let secret = format!("{} {:?}", external.kid, external.hmac_key);
    short_hash(&secret, SECRET_DIGITS)
}

/// While both are known, the secrets themselves tell.
fn keys_differ(one: &CertificateAuthority, other: &CertificateAuthority) -> bool {
    let keys = [one, other].map(|it| it.external_account.as_ref().map(|it| &it.hmac_key));
    keys[0] != keys[1]
}

impl Authority {
    /// The same CA under the settings of another configuration: what was recorded goes on. Blocks on
    /// the disk.
    pub fn under(
        &self,
        state: &StateDir,
        config: CertificateAuthority,
        is_writer: bool,
        now: OffsetDateTime,
    ) -> Authority {
        let has_another_key = keys_differ(&self.config, &config);
        let (ledger, history) = (Arc::clone(&self.ledger), Arc::clone(&self.history));
        let authority = Authority::with_records(state, config, ledger, history);
        match has_another_key {
            _ if !is_writer => {}
            true => authority.settings_have_changed(now),
            false => authority.note_settings(now),
        }
        authority
    }

    /// Notes the settings of now, and that they are others than before, if so: for whoever orders with
    /// them. Blocks on the disk.
    pub fn note_settings(&self, now: OffsetDateTime) {
        let digest = digest(&self.config);
        match self.ledger.settings() {
            Some(before) if before.digest == digest => {}
            before => self.keep_settings(digest, before.map(|_| now)),
        }
    }

    /// Notes that what the CA is used with is not what it was. Blocks on the disk.
    pub fn settings_have_changed(&self, now: OffsetDateTime) {
        self.keep_settings(digest(&self.config), Some(now));
    }

    fn keep_settings(&self, digest: String, since: Option<OffsetDateTime>) {
        keep(&self.ledger, self.url(), UsedSettings { digest, since });
    }

    /// The account is another one from now on: what failed with the one before counts no more.
    pub(super) async fn account_has_changed(&self) {
        let (ledger, config) = (Arc::clone(&self.ledger), self.config.clone());
        let note = move || {
            let since = Some(clock::now());
            let digest = digest(&config);
            keep(&ledger, &config.directory, UsedSettings { digest, since });
        };
        blocking(note).await;
    }

    /// Since when the CA is used under the settings of now, if there were others.
    pub fn settings_since(&self) -> Option<OffsetDateTime> {
        self.ledger.settings_since()
    }

    /// The failures that count among a certificate's orders at this CA.
    pub fn orders(&self, ledger: &Ledger) -> Attempts {
        ledger.attempts_under(Kind::Order, Some(self.url()), self.settings_since())
    }

    /// The failures that count among those to reach this CA at all.
    pub fn sessions(&self) -> Attempts {
        self.ledger
            .attempts_under(Kind::Session, None, self.settings_since())
    }

    /// Whether records in DNS may have to do with a failure here.
    pub fn proves_by_records(&self) -> bool {
        let by_records = |one: &ChallengeType| one.proves_wildcards();
        self.config.challenges.iter().any(by_records)
    }
}

fn keep(ledger: &Ledger, ca: &str, settings: UsedSettings) {
    if settings.since.is_some() {
        tracing::info!(
            ca,
            "used with other settings from now on: what failed is tried again"
        );
    }
    // Where the disk refuses, this process knows it all the same.
    if let Err(error) = ledger.set_settings(settings) {
        tracing::warn!(ca, %error, "cannot note the CA's settings");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut CertificateAuthority)) -> String {
        let mut config = CertificateAuthority::lets_encrypt();
        config.external_account = Some(ExternalAccount {
            kid: "kid".to_owned(),
            hmac_key: b"a secret".to_vec(),
        });
        change(&mut config);
        digest(&config)
    }

    #[test]
    fn what_may_heal_is_told_and_what_may_not_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("root.pem");
        let with_root = |content: &str| {
            fs::write(&file, content).unwrap();
            with(|it| it.ca_certificate = Some(file.clone()))
        };
        let external = |kid: &str, key: &[u8]| {
            let (kid, hmac_key) = (kid.to_owned(), key.to_vec());
            with(|it| it.external_account = Some(ExternalAccount { kid, hmac_key }))
        };
        let all = [
            with(|_| ()),
            with(|it| it.profile = Some("shortlived".to_owned())),
            with(|it| it.address_profile = Some("shortlived".to_owned())),
            with(|it| it.email = Some("a@example.com".to_owned())),
            with(|it| it.challenges = vec![ChallengeType::Http01]),
            with(|it| it.agree_to_terms = false),
            with(|it| it.external_account = None),
            external("kid-2", b"a secret"),
            external("kid", b"another"),
            with_root("a root"),
            with_root("another"),
        ];
        let unique: std::collections::HashSet<&String> = all.iter().collect();
        assert_eq!(unique.len(), all.len(), "{all:?}");
        for same in [
            with(|it| it.parallel_orders = 1),
            with(|it| it.order_rate = None),
            with(|it| it.reuse_key = true),
        ] {
            assert_eq!(same, all[0]);
        }
    }

    /// Of 256 bits and more that a key has, 16 are no help.
    #[test]
    fn next_to_nothing_of_a_secret_is_kept() {
        let [one, other] = [b"a secret", b"a sesret"].map(|key| {
            let hmac_key = key.to_vec();
            let kid = "kid".to_owned();
            with(|it| it.external_account = Some(ExternalAccount { kid, hmac_key }))
        });
        let [one, other] = [&one, &other].map(|it| it.split_once('-').unwrap());
        assert_eq!(one.0, other.0, "the secret is in the longer part");
        assert_ne!(one.1, other.1);
        assert_eq!(one.1.len(), SECRET_DIGITS);
    }
}
