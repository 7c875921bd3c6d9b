//! What the CA sent: checked, and made the current generation. It decides what is served under our
//! name, and asks nobody.

use std::path::Path;

use boring::x509::X509;
use rcgen::{KeyPair, PublicKeyData};
use time::OffsetDateTime;

use super::pending::{Pending, PendingDir};
use super::{Issued, texts};
use crate::certificate::name::Name;
use crate::clock;
use crate::config::KeyType;
use crate::store::StoreError;
use crate::store::generation::{self, Generation, Meta, Source};
use crate::store::leaf::{Leaf, chain_pem};

/// Why a certificate that the CA sent is not on disk as the current one.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error("{0}")]
    Unusable(String),
    /// Or this host's clock is ahead: then it is good.
    #[error("the CA's certificate expired at {}: check this host's clock", clock::rfc3339(*.0))]
    Expired(OffsetDateTime),
    /// The pending order is kept: the certificate is good.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks what the CA sent and makes it the current generation; the pending order is over then.
pub(super) fn keep(
    dir: &Path,
    pending: &Pending,
    key: &KeyPair,
    chain: &str,
    names: &[Name],
    key_type: KeyType,
) -> Result<Issued, KeepError> {
    let now = clock::now();
    let (leaf, chain) = verified(chain, key, names, now)?;
    let meta = Meta {
        ca: Some(pending.ca.clone()),
        order_url: Some(pending.order_url.clone()),
        ..Meta::new(Source::Acme, names, key_type, now)
    };
    let generation = Generation {
        fullchain_pem: &chain_pem(&chain),
        private_key_pem: &key.serialize_pem(),
        meta: &meta,
    };
    let path = generation::write(dir, &generation)?;
    PendingDir::of(dir).discard();
    Ok(Issued {
        leaf,
        path,
        order_url: Some(pending.order_url.clone()),
        answered: Vec::new(),
    })
}

/// The chain, if it is one that can be served: our key, our names, alive, and a chain at all.
pub(super) fn verified(
    chain: &str,
    key: &KeyPair,
    names: &[Name],
    now: OffsetDateTime,
) -> Result<(Leaf, Vec<Vec<u8>>), KeepError> {
    let (leaf, chain) = whole(chain, key, names).map_err(KeepError::Unusable)?;
    if leaf.not_after <= now {
        return Err(KeepError::Expired(leaf.not_after));
    }
    Ok((leaf, chain))
}

/// Whatever the time is.
fn whole(chain: &str, key: &KeyPair, names: &[Name]) -> Result<(Leaf, Vec<Vec<u8>>), String> {
    let (leaf, chain) = Leaf::from_chain_pem(chain.as_bytes())
        .map_err(|cause| format!("the CA's certificate is unusable: {cause}"))?;
    if leaf.public_key != key.subject_public_key_info() {
        return Err("the CA's certificate is for another key than the one asked for".to_owned());
    }
    if !leaf.covers(names) {
        return Err(format!(
            "the CA's certificate is for {}, not for all of {}",
            texts(&leaf.names).join(", "),
            texts(names).join(", ")
        ));
    }
    check_issuer(&chain)?;
    Ok((leaf, chain))
}

/// One of the certificates that came with the leaf has issued it, where any came. How the others
/// hang together is the CA's business: RFC 8555 section 7.4.2 has no more than a SHOULD for it.
fn check_issuer(chain: &[Vec<u8>]) -> Result<(), String> {
    let unusable = |error| format!("the CA's chain is unusable: {error}");
    let chain: Vec<X509> = chain
        .iter()
        .map(|der| X509::from_der(der).map_err(unusable))
        .collect::<Result<_, _>>()?;
    let Some((leaf, others)) = chain.split_first() else {
        return Ok(());
    };
    let issued = |other: &X509| {
        let key = other.public_key();
        key.is_ok_and(|key| leaf.verify(&key).unwrap_or(false))
    };
    if others.is_empty() || others.iter().any(issued) {
        return Ok(());
    }
    Err("the CA's chain is unusable: no certificate of it has issued the leaf".to_owned())
}
