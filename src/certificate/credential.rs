//! The BoringSSL seam: a certificate chain and its private key as one `SSL_CREDENTIAL`.
//!
//! `boring` makes credentials for raw public keys only, so the X.509 kind is made here, by the
//! four functions of `ssl.h` that it takes. `anchors`, `listener::tls`, `listener::tickets` and
//! `listener::client_auth` hold the rest of the `unsafe` code: what `boring` leaves out.

use std::sync::OnceLock;

use boring::error::ErrorStack;
use boring::pkey::{PKeyRef, Private};
use boring::ssl::SslCredential;
use boring_sys as ffi;
use foreign_types::{ForeignType, ForeignTypeRef};

/// Why BoringSSL refused a chain or a key.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("the chain has no certificate")]
    EmptyChain,
    #[error("the private key does not match the certificate")]
    KeyMismatch(#[source] ErrorStack),
    #[error("the TLS library refuses the certificate chain: {0}")]
    Chain(#[source] ErrorStack),
    #[error("the TLS library is out of memory")]
    OutOfMemory,
}

/// Makes a credential of a DER chain, leaf first, and the leaf's private key.
///
/// BoringSSL checks that the key belongs to the leaf. Equal certificates of different chains (the
/// intermediates) share their memory.
pub fn x509<C: AsRef<[u8]>>(
    chain: &[C],
    key: &PKeyRef<Private>,
) -> Result<SslCredential, CredentialError> {
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

    let buffers = chain
        .iter()
        .map(|der| Buffer::new(der.as_ref()))
        .collect::<Result<Vec<_>, _>>()?;
    let pointers: Vec<*mut ffi::CRYPTO_BUFFER> = buffers.iter().map(|buffer| buffer.0).collect();
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
