//! Session ticket keys (RFC 5077 section 4): the one that encrypts and those that still decrypt,
//! made and rotated here in memory, or given as files. Keys are never written anywhere.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use boring::error::ErrorStack;
use boring::hash::MessageDigest;
use boring::hmac::HmacCtxRef;
use boring::memcmp;
use boring::rand::rand_bytes;
use boring::ssl::{SslContextBuilder, TicketKeyCallbackResult};
use boring::symm::{Cipher, CipherCtxRef};
use boring_sys as ffi;
use time::OffsetDateTime;

const NAME_BYTES: usize = 16;
const IV_BYTES: usize = 16;

/// How many keys that no longer encrypt still decrypt.
const PREVIOUS: u32 = 2;

/// One key, as nginx's `ssl_session_ticket_key` defines it: a name by which tickets find it, and
/// keys for AES-CBC and HMAC-SHA-256.
pub struct TicketKey {
    name: [u8; NAME_BYTES],
    /// 16 or 32 bytes, and with it AES-128 or AES-256.
    aes: Secret,
    hmac: Secret,
}

/// Overwritten when dropped.
struct Secret(Box<[u8]>);

impl Drop for Secret {
    fn drop(&mut self) {
        // SAFETY: pointer and length describe memory that is ours alone.
        unsafe { ffi::OPENSSL_cleanse(self.0.as_mut_ptr().cast(), self.0.len()) }
    }
}

/// What is wrong with a key file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("has {0} bytes, but a session ticket key has 80 or 48 (openssl rand 80 > FILE makes one)")]
pub struct KeySizeError(usize);

impl TicketKey {
    /// 80 bytes: name, 32 for HMAC, 32 for AES-256. 48 bytes: name, 16 for AES-128, 16 for HMAC.
    pub fn parse(bytes: &[u8]) -> Result<TicketKey, KeySizeError> {
        let secret = |range: std::ops::Range<usize>| Secret(bytes[range].into());
        let (aes, hmac) = match bytes.len() {
            80 => (secret(48..80), secret(16..48)),
            48 => (secret(16..32), secret(32..48)),
            other => return Err(KeySizeError(other)),
        };
        let mut name = [0; NAME_BYTES];
        name.copy_from_slice(&bytes[..NAME_BYTES]);
        Ok(TicketKey { name, aes, hmac })
    }

    pub fn random() -> Result<TicketKey, ErrorStack> {
        let mut bytes = Secret(Box::new([0; 80]));
        rand_bytes(&mut bytes.0)?;
        TicketKey::parse(&bytes.0).map_err(|_| ErrorStack::get())
    }

    fn cipher(&self) -> Cipher {
        match self.aes.0.len() {
            16 => Cipher::aes_128_cbc(),
            _ => Cipher::aes_256_cbc(),
        }
    }
}

/// The keys at one moment: the first encrypts, all of them decrypt.
#[derive(Clone)]
pub struct TicketKeys {
    /// Each with the time since which it encrypts or encrypted. Never empty.
    keys: Vec<(OffsetDateTime, Arc<TicketKey>)>,
    /// From files: they change when the files do, and not with time.
    fixed: bool,
}

impl TicketKeys {
    pub fn new(key: TicketKey, now: OffsetDateTime) -> TicketKeys {
        TicketKeys {
            keys: vec![(now, Arc::new(key))],
            fixed: false,
        }
    }

    /// Out of files. `keys` must not be empty.
    pub fn fixed(keys: Vec<TicketKey>, now: OffsetDateTime) -> TicketKeys {
        let keys = keys.into_iter().map(|key| (now, Arc::new(key)));
        TicketKeys {
            keys: keys.collect(),
            fixed: true,
        }
    }

    /// Until when the first key encrypts; `None` for keys from files.
    pub fn next_rotation(&self, interval: Duration) -> Option<OffsetDateTime> {
        let since = self.keys.first()?.0;
        (!self.fixed).then_some(since + interval)
    }

    /// Whether a new key is due. A clock that was set back makes one due as well: else the present
    /// one would encrypt until the clock is there again.
    pub fn is_due(&self, now: OffsetDateTime, interval: Duration) -> bool {
        let started = self.keys.first().map(|(since, _)| *since);
        self.next_rotation(interval).is_some_and(|next| next <= now)
            || (!self.fixed && started.is_some_and(|since| now < since))
    }

    /// The keys with a new one in front, and without those whose time is over.
    pub fn rotated(&self, fresh: TicketKey, now: OffsetDateTime, interval: Duration) -> TicketKeys {
        let lifetime = interval * (PREVIOUS + 1);
        let kept = self
            .keys
            .iter()
            .filter(|(since, _)| now - *since < lifetime)
            .take(PREVIOUS as usize)
            .cloned();
        TicketKeys {
            keys: std::iter::once((now, Arc::new(fresh)))
                .chain(kept)
                .collect(),
            fixed: false,
        }
    }

    fn find(&self, name: &[u8; NAME_BYTES]) -> Option<(usize, &TicketKey)> {
        let mut keys = self.keys.iter().enumerate();
        keys.find(|(_, (_, key))| memcmp::eq(&key.name, name))
            .map(|(index, (_, key))| (index, &**key))
    }
}

/// The keys in service. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct SessionTickets {
    keys: Arc<ArcSwap<TicketKeys>>,
    rotation: Arc<ArcSwap<Duration>>,
}

impl SessionTickets {
    /// Begins with a key of its own making.
    pub fn new(rotation: Duration, now: OffsetDateTime) -> Result<SessionTickets, ErrorStack> {
        let keys = TicketKeys::new(TicketKey::random()?, now);
        Ok(SessionTickets {
            keys: Arc::new(ArcSwap::from_pointee(keys)),
            rotation: Arc::new(ArcSwap::from_pointee(rotation)),
        })
    }

    pub fn set_rotation(&self, rotation: Duration) {
        self.rotation.store(Arc::new(rotation));
    }

    /// Goes on with a key of its own making where the keys were from files.
    pub fn leave_files(&self, now: OffsetDateTime) -> Result<(), ErrorStack> {
        if self.keys.load().fixed {
            self.publish(TicketKeys::new(TicketKey::random()?, now));
        }
        Ok(())
    }

    pub fn publish(&self, keys: TicketKeys) {
        self.keys.store(Arc::new(keys));
    }

    /// Makes a new key if one is due, and says when the next one is. Called by one thread alone.
    pub fn rotate(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let keys = self.keys.load();
        let interval = **self.rotation.load();
        if !keys.is_due(now, interval) {
            return keys.next_rotation(interval);
        }
        match TicketKey::random() {
            Ok(fresh) => {
                let rotated = keys.rotated(fresh, now, interval);
                let next = rotated.next_rotation(interval);
                self.publish(rotated);
                tracing::debug!("session ticket key rotated");
                next
            }
            Err(error) => {
                tracing::error!(%error, "no new session ticket key could be made");
                Some(now + interval)
            }
        }
    }

    /// Makes a context encrypt and decrypt its tickets with these keys.
    pub fn install(&self, builder: &mut SslContextBuilder) {
        let tickets = self.clone();
        // SAFETY: for encryption the callback sets name, IV, cipher and HMAC, or reports an
        // error; for decryption it sets cipher and HMAC before it reports success. The context of
        // a connection is never exchanged, so the callback is found where it was put.
        unsafe {
            builder.set_ticket_key_callback(move |_, name, iv, cipher, hmac, encrypt| {
                let keys = tickets.keys.load();
                let result = match encrypt {
                    true => keys.begin_encryption(name, iv, cipher, hmac),
                    false => keys.begin_decryption(name, iv, cipher, hmac),
                };
                result.unwrap_or(TicketKeyCallbackResult::Error)
            });
        }
    }
}

impl TicketKeys {
    fn begin_encryption(
        &self,
        name: &mut [u8; NAME_BYTES],
        iv: &mut [u8; IV_BYTES],
        cipher: &mut CipherCtxRef,
        hmac: &mut HmacCtxRef,
    ) -> Result<TicketKeyCallbackResult, ErrorStack> {
        let Some((_, key)) = self.keys.first() else {
            return Ok(TicketKeyCallbackResult::Error);
        };
        *name = key.name;
        rand_bytes(iv)?;
        cipher.init_encrypt(&key.cipher(), &key.aes.0, iv)?;
        hmac.init(&key.hmac.0, &MessageDigest::sha256())?;
        Ok(TicketKeyCallbackResult::Success)
    }

    fn begin_decryption(
        &self,
        name: &[u8; NAME_BYTES],
        iv: &[u8; IV_BYTES],
        cipher: &mut CipherCtxRef,
        hmac: &mut HmacCtxRef,
    ) -> Result<TicketKeyCallbackResult, ErrorStack> {
        let Some((index, key)) = self.find(name) else {
            return Ok(TicketKeyCallbackResult::Noop);
        };
        cipher.init_decrypt(&key.cipher(), &key.aes.0, iv)?;
        hmac.init(&key.hmac.0, &MessageDigest::sha256())?;
        Ok(match index {
            0 => TicketKeyCallbackResult::Success,
            _ => TicketKeyCallbackResult::DecryptSuccessRenew,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const START: OffsetDateTime = datetime!(2030-01-01 00:00 UTC);
    const INTERVAL: Duration = Duration::from_secs(12 * 3600);

    /// A key whose name is `id` alone.
    fn key(id: u8) -> TicketKey {
        TicketKey::parse(&[id; 80]).unwrap()
    }

    fn names(keys: &TicketKeys) -> Vec<u8> {
        keys.keys.iter().map(|(_, key)| key.name[0]).collect()
    }

    #[test]
    fn the_two_previous_keys_still_decrypt() {
        let mut keys = TicketKeys::new(key(1), START);
        for (id, expected) in [
            (2, vec![2, 1]),
            (3, vec![3, 2, 1]),
            (4, vec![4, 3, 2]),
            (5, vec![5, 4, 3]),
        ] {
            let now = START + INTERVAL * u32::from(id - 1);
            assert!(!keys.is_due(now - Duration::from_secs(1), INTERVAL));
            assert!(keys.is_due(now, INTERVAL));
            keys = keys.rotated(key(id), now, INTERVAL);
            assert_eq!(names(&keys), expected);
            assert!(keys.find(&[id; 16]).is_some());
        }
        assert!(keys.find(&[2; 16]).is_none());
    }

    #[test]
    fn what_slept_too_long_is_forgotten() {
        let keys = TicketKeys::new(key(1), START).rotated(key(2), START + INTERVAL, INTERVAL);
        let late = keys.rotated(key(3), START + INTERVAL * 3, INTERVAL);
        assert_eq!(names(&late), [3, 2]);
        let later = keys.rotated(key(3), START + INTERVAL * 100, INTERVAL);
        assert_eq!(names(&later), [3]);
    }

    #[test]
    fn a_clock_set_back_makes_a_new_key_due() {
        let keys = TicketKeys::new(key(1), START);
        assert!(keys.is_due(START - Duration::from_secs(1), INTERVAL));
    }

    #[test]
    fn keys_from_files_do_not_age() {
        let keys = TicketKeys::fixed(vec![key(1), key(2)], START);
        assert!(!keys.is_due(START + INTERVAL * 100, INTERVAL));
        assert_eq!(keys.next_rotation(INTERVAL), None);
        assert_eq!(keys.find(&[2; 16]).unwrap().0, 1);
    }

    #[test]
    fn key_files_are_laid_out_as_nginx_has_them() {
        let bytes: Vec<u8> = (0..80).collect();
        let long = TicketKey::parse(&bytes).unwrap();
        assert_eq!(long.name[..2], [0, 1]);
        assert_eq!((long.hmac.0[0], long.hmac.0.len()), (16, 32));
        assert_eq!((long.aes.0[0], long.aes.0.len()), (48, 32));
        let short = TicketKey::parse(&bytes[..48]).unwrap();
        assert_eq!((short.aes.0[0], short.aes.0.len()), (16, 16));
        assert_eq!((short.hmac.0[0], short.hmac.0.len()), (32, 16));
        assert_eq!(TicketKey::parse(&bytes[..64]).err(), Some(KeySizeError(64)));
    }

    #[test]
    fn rotation_says_when_it_is_next_due() {
        let tickets = SessionTickets::new(INTERVAL, START).unwrap();
        assert_eq!(tickets.rotate(START), Some(START + INTERVAL));
        let next = START + INTERVAL;
        assert_eq!(tickets.rotate(next), Some(next + INTERVAL));
        assert_eq!(tickets.keys.load().keys.len(), 2);
    }
}
