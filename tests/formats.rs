//! The forms that certificates and keys come in, as openssl writes them: each is served, and
//! replaced by the next one of its kind. What cannot be used is refused with its cause.

use std::path::{Path, PathBuf};

use crate::reload::LIMIT;
use crate::reload::{EVENTS, NAME, POLL, start, wait_served};
use crate::support::certs::{KeyKind, Leaf, TestCa};
use crate::support::client::{serial, served};
use crate::support::clock;
use crate::support::command::openssl;
use crate::support::perennial::Perennial;
use crate::support::place::Place;
use crate::support::wait::{SOON, wait_until};

const PASSWORD: &str = "correct horse";

/// A folder with a leaf in plain PEM, out of which openssl makes other forms.
struct Desk {
    folder: PathBuf,
    kind: KeyKind,
    root_pem: String,
    leaf: Leaf,
}

impl Desk {
    fn new(place: &Place, ca: &TestCa, kind: KeyKind) -> Desk {
        let begin = clock::now() - time::Duration::HOUR;
        let end = begin + time::Duration::days(90);
        let desk = Desk {
            folder: place.path("tls"),
            kind,
            root_pem: ca.root_pem.clone(),
            leaf: ca.leaf_with(&[NAME], begin, end, kind),
        };
        let file = |name, text: &str| drop(place.write(Path::new("source").join(name), text));
        file("certificate", &desk.leaf.certificate_pem);
        file("intermediate", &desk.leaf.intermediate_pem);
        file("key", &desk.leaf.key_pem);
        std::fs::create_dir_all(&desk.folder).expect("a folder");
        place.write("secret/password", format!("{PASSWORD}\n"));
        desk
    }

    fn source(&self, name: &str) -> String {
        let path = self.folder.with_file_name("source").join(name);
        path.display().to_string()
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.folder.join(name), contents).expect("written");
    }

    /// Another form of the key.
    async fn key(&self, arguments: &[&str]) {
        let (from, to) = (self.source("key"), self.file("tls.key"));
        openssl(&[arguments, &["-in", &from, "-out", &to]].concat()).await;
    }

    /// The chain in PEM and whatever key was made, with the password file or without.
    fn pair(&self, more: &str) -> String {
        self.write("tls.crt", self.leaf.chain_pem());
        self.table("tls.crt", &format!("{}{more}", self.private_key()))
    }

    fn table(&self, certificate: &str, more: &str) -> String {
        let file = self.file(certificate);
        format!("[[certificates.files]]\ncertificate = {file:?}\n{more}")
    }

    fn private_key(&self) -> String {
        format!("private_key = {:?}\n", self.file("tls.key"))
    }

    /// Not beside what it opens.
    fn password_path(&self) -> PathBuf {
        self.folder.with_file_name("secret").join("password")
    }

    fn password_file(&self) -> String {
        format!("password_file = {:?}\n", self.password_path())
    }

    async fn pkcs12(&self, more: &[&str]) -> String {
        let [certificate, intermediate, key] =
            ["certificate", "intermediate", "key"].map(|name| self.source(name));
        let (out, password) = (self.file("tls.p12"), format!("pass:{PASSWORD}"));
        let arguments = [
            &["pkcs12", "-export", "-passout", &password, "-out", &out],
            &["-in", &certificate, "-certfile", &intermediate][..],
            &["-inkey", &key],
            more,
        ];
        openssl(&arguments.concat()).await;
        self.table("tls.p12", &self.password_file())
    }
}

/// `write` puts a leaf into files and tells the `[[certificates.files]]` table for them.
async fn served_and_replaced(
    kind: KeyKind,
    chain_len: usize,
    write: impl AsyncFn(&Desk) -> String,
) {
    let (place, ca) = (Place::new(), TestCa::new());
    let old = Desk::new(&place, &ca, kind);
    let table = write(&old).await;
    let perennial = start(place, &format!("{EVENTS}{table}")).await;
    assert_served(&perennial, &old, chain_len).await;
    let new = Desk::new(&perennial.place, &ca, kind);
    assert_eq!(write(&new).await, table);
    assert_served(&perennial, &new, chain_len).await;
}

async fn assert_served(perennial: &Perennial, desk: &Desk, chain_len: usize) {
    wait_served(perennial, &desk.leaf, LIMIT).await;
    let shown = served(perennial.place.https, Some(NAME)).await;
    let shown = shown.expect("a handshake");
    assert_eq!(shown.chain_len, chain_len, "{:?}: {shown:?}", desk.kind);
}

#[tokio::test(flavor = "multi_thread")]
async fn pkcs12_with_a_password_file() {
    served_and_replaced(KeyKind::P256, 2, async |desk| desk.pkcs12(&[]).await).await;
}

/// RC2 and 3DES, as Windows and Java still write it.
#[tokio::test(flavor = "multi_thread")]
async fn pkcs12_with_old_ciphers() {
    let old = &["-legacy"];
    served_and_replaced(KeyKind::Rsa2048, 2, async |desk| desk.pkcs12(old).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_pkcs8_key() {
    served_and_replaced(KeyKind::P256, 2, async |desk| {
        let password = format!("pass:{PASSWORD}");
        desk.key(&[
            "pkcs8",
            "-topk8",
            "-v2",
            "aes-256-cbc",
            "-passout",
            &password,
        ])
        .await;
        desk.pair(&desk.password_file())
    })
    .await;
}

/// `Proc-Type: 4,ENCRYPTED`
#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_key_of_the_older_form() {
    served_and_replaced(KeyKind::Rsa2048, 2, async |desk| {
        let password = format!("pass:{PASSWORD}");
        desk.key(&["rsa", "-aes128", "-traditional", "-passout", &password])
            .await;
        desk.pair(&desk.password_file())
    })
    .await;
}

/// PKCS#1
#[tokio::test(flavor = "multi_thread")]
async fn an_rsa_key_of_its_own_form() {
    served_and_replaced(KeyKind::Rsa2048, 2, async |desk| {
        desk.key(&["rsa", "-traditional"]).await;
        desk.pair("")
    })
    .await;
}

/// SEC1
#[tokio::test(flavor = "multi_thread")]
async fn a_p384_key_of_its_own_form() {
    served_and_replaced(KeyKind::P384, 2, async |desk| {
        desk.key(&["ec"]).await;
        desk.pair("")
    })
    .await;
}

/// DER has room for one certificate: its issuer's is missing, and that is served.
#[tokio::test(flavor = "multi_thread")]
async fn der_for_both() {
    served_and_replaced(KeyKind::P256, 1, async |desk| {
        desk.key(&["pkey", "-outform", "DER"]).await;
        let (from, to) = (desk.source("certificate"), desk.file("tls.der"));
        openssl(&["x509", "-outform", "DER", "-in", &from, "-out", &to]).await;
        desk.table("tls.der", &desk.private_key())
    })
    .await;
}

/// The issuer first, the key in the middle, the root at the end: it is served in order, without
/// the root.
#[tokio::test(flavor = "multi_thread")]
async fn all_in_one_file_out_of_order_as_windows_writes_text() {
    served_and_replaced(KeyKind::P256, 2, async |desk| {
        let Leaf {
            certificate_pem,
            intermediate_pem,
            key_pem,
            ..
        } = &desk.leaf;
        let root_pem = &desk.root_pem;
        let text = format!(
            "\u{feff}issuer\n{intermediate_pem}\n{key_pem}# for {NAME}\n{certificate_pem}{root_pem}"
        );
        desk.write("all.pem", text.replace('\n', "\r\n"));
        desk.table("all.pem", "")
    })
    .await;
}

/// Refused with these words in `/status`, then mended.
async fn refused(words: &str, write: impl AsyncFn(&Desk) -> String) {
    let (place, ca) = (Place::new(), TestCa::new());
    let desk = Desk::new(&place, &ca, KeyKind::P256);
    let table = write(&desk).await;
    let perennial = start(place, &format!("{EVENTS}{table}")).await;
    let at_fault = perennial.place.path("tls").display().to_string();
    let what = format!("/status to say {words:?}");
    wait_until(SOON, &what, async || {
        let status = perennial.status_json().await;
        let told = status["certificates"][0]["last_error"].as_str()?;
        (told.contains(words) && told.starts_with(&at_fault)).then_some(())
    })
    .await;
    assert!(serial(perennial.place.https, NAME).await.is_err());
    let (ready, reasons) = perennial.admin_get("/readyz").await;
    assert_eq!(ready, 503, "{reasons}");
    desk.write("tls.key", &desk.leaf.key_pem);
    desk.write("tls.crt", desk.leaf.chain_pem());
    wait_served(&perennial, &desk.leaf, LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_key_without_a_password() {
    refused("name a password_file", async |desk| {
        let password = format!("pass:{PASSWORD}");
        desk.key(&["pkcs8", "-topk8", "-passout", &password]).await;
        desk.pair("")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_key_with_the_wrong_password() {
    refused("the password does not open it", async |desk| {
        desk.key(&["pkcs8", "-topk8", "-passout", "pass:something else"])
            .await;
        desk.pair(&desk.password_file())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pkcs12_with_the_wrong_password() {
    let (place, ca) = (Place::new(), TestCa::new());
    let desk = Desk::new(&place, &ca, KeyKind::P256);
    let table = desk.pkcs12(&[]).await;
    std::fs::write(desk.password_path(), "something else\n").expect("written");
    let perennial = start(place, &format!("{POLL}{table}")).await;
    let store = desk.file("tls.p12");
    let told = perennial.status_field(&store, "last_error");
    let told = told.await.expect("an error").to_string();
    assert!(told.contains("the password does not open it"), "{told}");
    assert!(serial(perennial.place.https, NAME).await.is_err());
    // Nobody touches the store itself.
    std::fs::write(desk.password_path(), format!("{PASSWORD}\n")).expect("written");
    wait_served(&perennial, &desk.leaf, LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_too_weak() {
    refused("768-bit RSA key, which is too weak", async |desk| {
        let (key, certificate) = (desk.file("tls.key"), desk.file("tls.crt"));
        let (subject, name) = (format!("/CN={NAME}"), format!("subjectAltName=DNS:{NAME}"));
        let make = ["req", "-x509", "-newkey", "rsa:768", "-nodes", "-days", "9"];
        let names = ["-subj", &subject, "-addext", &name];
        let out = ["-keyout", &key, "-out", &certificate];
        openssl(&[&make[..], &names, &out].concat()).await;
        desk.table("tls.crt", &desk.private_key())
    })
    .await;
}
