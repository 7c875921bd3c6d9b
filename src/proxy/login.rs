//! Names and passwords (RFC 7617), compared with hashes that are slow on purpose: on threads for
//! work that blocks, few at once, and not again for what was right a moment ago.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use argon2::Argon2;
use argon2::password_hash::PasswordVerifier as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use boring::sha::Sha256;
use tokio::sync::Semaphore;

use super::access::Denial;
use crate::config::{BasicAuth, PasswordHash};

/// Hashes that may be computed at once, by all sites together: whoever guesses must not take all
/// cores.
static COMPUTING: Semaphore = Semaphore::const_new(2);

/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a password that was right need not be computed again.
const REMEMBERED: Duration = Duration::from_secs(300);

/// How many are remembered.
const MAX_REMEMBERED: usize = 1024;

/// No password is that long; what hashing costs grows with it.
const MAX_BYTES: usize = 1024;

/// The users of one `basic_auth`.
pub struct Logins {
    auth: BasicAuth,
    /// Of this process alone, so that what is remembered says nothing about passwords.
    salt: [u8; 32],
    remembered: Mutex<HashMap<[u8; 32], Instant>>,
}

impl Logins {
    pub fn new(auth: &BasicAuth) -> Logins {
        Logins {
            auth: auth.clone(),
            salt: rand::random(),
            remembered: Mutex::default(),
        }
    }

    /// The user that the field names, if the password is right.
    pub async fn verify(&self, authorization: Option<&[u8]>) -> Result<Box<str>, Denial> {
        let refused = || Denial::Login {
            realm: self.auth.realm.clone(),
        };
        let (name, password) = authorization.and_then(credentials).ok_or_else(refused)?;
        let user = self.auth.users.iter().find(|(known, _)| **known == *name);
        // Somebody who is not there takes as long.
        let (_, hash) = user.or(self.auth.users.first()).ok_or_else(refused)?;
        let proof = self.proof(&name, &password, user.is_some());
        if self.is_remembered(&proof) {
            return Ok(name.into());
        }
        let turn = tokio::time::timeout(PATIENCE, COMPUTING.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            let retry_after = PATIENCE.as_secs();
            return Err(Denial::TooMany { retry_after });
        };
        let hash = hash.clone();
        let is_right = tokio::task::spawn_blocking(move || is_right(&hash, &password)).await;
        // It panicked if it cannot be joined, and said so.
        if !is_right.unwrap_or(false) || user.is_none() {
            return Err(refused());
        }
        self.remember(proof);
        Ok(name.into())
    }

    fn proof(&self, name: &str, password: &[u8], is_known: bool) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(&self.salt);
        hash.update(&[u8::from(is_known)]);
        hash.update(&(name.len() as u64).to_be_bytes());
        hash.update(name.as_bytes());
        hash.update(password);
        hash.finish()
    }

    fn is_remembered(&self, proof: &[u8; 32]) -> bool {
        let remembered = self
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        remembered
            .get(proof)
            .is_some_and(|since| since.elapsed() < REMEMBERED)
    }

    fn remember(&self, proof: [u8; 32]) {
        let mut remembered = self
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MAX_REMEMBERED {
            remembered.retain(|_, since| since.elapsed() < REMEMBERED);
            if remembered.len() >= MAX_REMEMBERED {
                remembered.clear();
            }
        }
        remembered.insert(proof, Instant::now());
    }
}

/// Name and password.
fn credentials(authorization: &[u8]) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = authorization.split_at_checked(6)?;
    let encoded = scheme.eq_ignore_ascii_case(b"basic ").then_some(encoded)?;
    let decoded = BASE64_STANDARD.decode(encoded.trim_ascii()).ok()?;
    let end = decoded.iter().position(|byte| *byte == b':')?;
    let name = std::str::from_utf8(&decoded[..end]).ok()?;
    let password = decoded[end + 1..].to_vec();
    (password.len() <= MAX_BYTES).then(|| (name.to_owned(), password))
}

fn is_right(hash: &PasswordHash, password: &[u8]) -> bool {
    match hash {
        PasswordHash::Argon2(hash) => argon2::PasswordHash::new(hash)
            .is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok()),
        PasswordHash::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logins(users: &[(&str, PasswordHash)]) -> Logins {
        Logins::new(&BasicAuth {
            realm: "r".into(),
            users: users
                .iter()
                .map(|(name, hash)| (Box::from(*name), hash.clone()))
                .collect(),
        })
    }

    fn bcrypt(password: &str) -> PasswordHash {
        PasswordHash::Bcrypt(bcrypt::hash(password, 4).unwrap().into())
    }

    #[tokio::test]
    async fn the_right_password_of_the_right_user_lets_in() {
        let logins = logins(&[("ann", bcrypt("a:b")), ("bob", bcrypt("c"))]);
        for (given, expected) in [
            ("ann:a:b", true),
            ("ann:a:b", true),
            ("ann:c", false),
            ("bob:c", true),
            ("eve:a:b", false),
            ("eve:a:b", false),
            ("ann", false),
            ("", false),
        ] {
            let encoded = format!("Basic {}", BASE64_STANDARD.encode(given));
            let found = logins.verify(Some(encoded.as_bytes())).await;
            assert_eq!(found.is_ok(), expected, "{given}");
        }
        for field in [
            None,
            Some(&b"Bearer x"[..]),
            Some(b"Basic"),
            Some(b"Basic %"),
        ] {
            assert!(logins.verify(field).await.is_err());
        }
    }

    #[tokio::test]
    async fn what_is_remembered_is_no_way_in_for_others() {
        let logins = logins(&[("ann", bcrypt("x")), ("bob", bcrypt("y"))]);
        let field = |text: &str| format!("basic {}", BASE64_STANDARD.encode(text)).into_bytes();
        assert!(logins.verify(Some(&field("ann:x"))).await.is_ok());
        assert!(logins.verify(Some(&field("bob:x"))).await.is_err());
        assert_eq!(logins.remembered.lock().unwrap().len(), 1);
    }
}
