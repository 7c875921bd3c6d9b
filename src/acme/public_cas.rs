//! The directories of CAs that everybody trusts: the one list of what is known without asking.

/// Directory URLs.
pub const DIRECTORIES: [&str; 9] = [
    "https://acme-v02.api.letsencrypt.org/directory",
    "https://acme-staging-v02.api.letsencrypt.org/directory",
    "https://acme.zerossl.com/v2/DV90",
    "https://dv.acme-v02.api.pki.goog/directory",
    "https://dv.acme-v02.test-api.pki.goog/directory",
    "https://acme.ssl.com/sslcom-dv-ecc",
    "https://acme.ssl.com/sslcom-dv-rsa",
    "https://acme-api.actalis.com/acme/directory",
    "https://api.buypass.com/acme/directory",
];

/// Whether a directory is that of a public CA, by its host: those look from outside, and so care
/// about what DNS and the network say there.
pub fn is_public(directory: &str) -> bool {
    DIRECTORIES
        .iter()
        .any(|known| host(known) == host(directory))
        || is_test_public(directory)
}

fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

/// Lets a test's CA be a public one. Debug builds only.
fn is_test_public(directory: &str) -> bool {
    cfg!(debug_assertions)
        && std::env::var_os("PERENNIAL_TEST_PUBLIC_CA").is_some_and(|wanted| wanted == directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_the_host_alone() {
        assert!(is_public("https://acme-v02.api.letsencrypt.org/directory"));
        assert!(is_public("https://acme.zerossl.com/v2/other"));
        assert!(!is_public(
            "https://acme-v02.api.letsencrypt.org.ca.test/directory"
        ));
        assert!(!is_public("https://127.0.0.1:14000/dir"));
    }
}
