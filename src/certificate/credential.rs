//! The BoringSSL seam: a certificate chain and its private key as one `SSL_CREDENTIAL`.
//!
//! `boring` makes credentials for raw public keys only, so the X.509 kind is made here, by the
//! four functions of `ssl.h` that it takes. `anchors`, `listener::tls`, `listener::tickets` and
//! `listener::client_auth` hold the rest of the `unsafe` code: what `boring` leaves out.

use std::sync::OnceLock;

use boring::error::ErrorStack;
use boring::pkey::{PKey, PKeyRef, Private};
use boring::ssl::SslCredential;
use boring_sys as ffi;
use foreign_types::{ForeignType, ForeignTypeRef};
use zeroize::Zeroizing;

/// Why BoringSSL refused a chain or a key.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("the chain has no certificate")]
    EmptyChain,
    #[error("the private key does not match the certificate")]
    KeyMismatch(#[source] ErrorStack),
    #[error("the TLS library refuses the certificate chain: {0}")]
    Chain(#[source] ErrorStack),
    #[error("the TLS library cannot read again the private key that it wrote: {0}")]
    Key(#[source] ErrorStack),
    #[error("the TLS library is out of memory")]
    OutOfMemory,
}

impl CredentialError {
    /// What the TLS library said.
    pub fn into_stack(self) -> ErrorStack {
        match self {
            CredentialError::KeyMismatch(stack)
            | CredentialError::Chain(stack)
            | CredentialError::Key(stack) => stack,
            CredentialError::EmptyChain | CredentialError::OutOfMemory => ErrorStack::get(),
        }
    }
}

/// A chain and a key of which a credential has been made and can be made again. Most names of a host
/// with many are hardly ever asked for, and what BoringSSL needs for signing is four times the key:
/// it is made when the first handshake wants it.
pub struct Dormant {
    chain: Box<[Buffer]>,
    /// PKCS#8.
    key: Zeroizing<Box<[u8]>>,
    awake: OnceLock<SslCredential>,
}

impl Dormant {
    /// Of a DER chain, leaf first, and the leaf's private key. Checks what [`x509`] does.
    pub fn new<C: AsRef<[u8]>>(
        chain: &[C],
        key: &PKeyRef<Private>,
    ) -> Result<Dormant, CredentialError> {
        let chain = buffers(chain)?;
        make(&chain, key)?;
        let key = key.private_key_to_der_pkcs8();
        Ok(Dormant {
            chain,
            key: Zeroizing::new(key.map_err(CredentialError::Key)?.into_boxed_slice()),
            awake: OnceLock::new(),
        })
    }

    /// For a handshake. Once it was made it is kept.
    pub fn credential(&self) -> Result<&SslCredential, CredentialError> {
        if let Some(awake) = self.awake.get() {
            return Ok(awake);
        }
        let key = PKey::private_key_from_pkcs8(&self.key).map_err(CredentialError::Key)?;
        let credential = make(&self.chain, &key)?;
        // Another thread's, if that was faster.
        Ok(self.awake.get_or_init(|| credential))
    }
}

/// Makes a credential of a DER chain, leaf first, and the leaf's private key.
///
/// BoringSSL checks that the key belongs to the leaf. Equal certificates of different chains (the
/// intermediates) share their memory.
pub fn x509<C: AsRef<[u8]>>(
    chain: &[C],
    key: &PKeyRef<Private>,
) -> Result<SslCredential, CredentialError> {
    make(&buffers(chain)?, key)
}

fn buffers<C: AsRef<[u8]>>(chain: &[C]) -> Result<Box<[Buffer]>, CredentialError> {
    chain.iter().map(|der| Buffer::new(der.as_ref())).collect()
}

fn make(chain: &[Buffer], key: &PKeyRef<Private>) -> Result<SslCredential, CredentialError> {
    if chain.is_empty() {
        return Err(CredentialError::EmptyChain);
    }
    // SAFETY: the constructor has no preconditions; a null result is handled.
    let raw = unsafe { ffi::SSL_CREDENTIAL_new_x509() };
    if raw.is_null() {
        return Err(CredentialError::OutOfMemory);
    }
    // SAFETY: `raw` is a live credential of which we hold the only reference; `SslCredential`
    // takes that reference over and frees it when dropped, on the error paths below too.
    let credential = unsafe { SslCredential::from_ptr(raw) };

    let pointers: Vec<*mut ffi::CRYPTO_BUFFER> = chain.iter().map(|buffer| buffer.0).collect();
    // SAFETY: `pointers` holds live buffers for the length of the call; the callee takes its own
    // references (`set1`).
    let accepted =
        unsafe { ffi::SSL_CREDENTIAL_set1_cert_chain(raw, pointers.as_ptr(), pointers.len()) };
    if accepted != 1 {
        return Err(CredentialError::Chain(ErrorStack::get()));
    }
    // SAFETY: `key` is a live EVP_PKEY; the callee takes its own reference.
    let accepted = unsafe { ffi::SSL_CREDENTIAL_set1_private_key(raw, key.as_ptr()) };
    if accepted != 1 {
        return Err(CredentialError::KeyMismatch(ErrorStack::get()));
    }
    Ok(credential)
}

/// One owned reference to a `CRYPTO_BUFFER` of the shared pool.
struct Buffer(*mut ffi::CRYPTO_BUFFER);

// SAFETY: a `CRYPTO_BUFFER` never changes, and its references are counted atomically (pool.h).
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn new(der: &[u8]) -> Result<Buffer, CredentialError> {
        // SAFETY: pointer and length describe `der`, which the callee copies.
        let buffer = unsafe { ffi::CRYPTO_BUFFER_new(der.as_ptr(), der.len(), pool()) };
        if buffer.is_null() {
            return Err(CredentialError::OutOfMemory);
        }
        Ok(Buffer(buffer))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: we own exactly one reference, made in `new`.
        unsafe { ffi::CRYPTO_BUFFER_free(self.0) }
    }
}

/// The pool in which equal certificates are stored once. Null (no pool: every certificate has
/// memory of its own) if it cannot be made.
fn pool() -> *mut ffi::CRYPTO_BUFFER_POOL {
    struct Pool(*mut ffi::CRYPTO_BUFFER_POOL);
    // SAFETY: BoringSSL guards the pool with a lock of its own; the pointer is never freed.
    unsafe impl Send for Pool {}
    // SAFETY: as above.
    unsafe impl Sync for Pool {}
    static POOL: OnceLock<Pool> = OnceLock::new();
    // SAFETY: the constructor has no preconditions.
    POOL.get_or_init(|| Pool(unsafe { ffi::CRYPTO_BUFFER_POOL_new() }))
        .0
}
