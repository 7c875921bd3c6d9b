use std::path::Path;

use time::{Duration, OffsetDateTime};

use super::delivery::verified;
use super::*;
use crate::acme::limits::Past;

fn names(texts: &[&str]) -> Vec<Name> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn an_offence_at_replaces() {
    let mut error = AcmeError::new(Class::Retryable, "order", "x");
    assert!(!refuses_predecessor(&error, Some(400)));
    assert!(refuses_predecessor(&error, Some(409)));
    error.problem = Some("alreadyReplaced".to_owned());
    assert!(refuses_predecessor(&error, Some(400)));
    error.problem = Some("serverInternal".to_owned());
    assert!(refuses_predecessor(&error, Some(500)));
    error.problem = Some("rateLimited".to_owned());
    assert!(!refuses_predecessor(&error, Some(429)));
    error.problem = None;
    error.detail = "replaces field mismatch: expected ..".to_owned();
    assert!(refuses_predecessor(&error, Some(201)));
}

struct Made {
    key: KeyPair,
    chain: String,
}

fn made(texts: &[&str], not_after: OffsetDateTime) -> Made {
    let key = KeyPair::generate().unwrap();
    let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
    let mut params = CertificateParams::new(texts).unwrap();
    params.not_before = not_after - Duration::DAY;
    params.not_after = not_after;
    let chain = params.self_signed(&key).unwrap().pem();
    Made { key, chain }
}

#[test]
fn what_the_ca_sends_is_checked() {
    let now = clock::now();
    let good = made(&["a.test", "b.test"], now + Duration::HOUR);
    let wanted = names(&["a.test", "b.test"]);
    assert!(verified(&good.chain, &good.key, &wanted, now).is_ok());
    let other = KeyPair::generate().unwrap();
    let fails = |chain: &str, key: &KeyPair, wanted: &[Name]| {
        let error = verified(chain, key, wanted, now).unwrap_err();
        error.to_string()
    };
    assert!(fails(&good.chain, &other, &wanted).contains("another key"));
    assert!(fails(&good.chain, &good.key, &names(&["c.test"])).contains("c.test"));
    assert!(fails("", &good.key, &wanted).contains("unusable"));
    let old = made(&["a.test"], now - Duration::HOUR);
    assert!(fails(&old.chain, &old.key, &names(&["a.test"])).contains("clock"));
}

/// A chain that is somebody else's, or that ends in the middle, is no chain.
#[test]
fn the_leaf_is_issued_by_a_certificate_of_its_chain() {
    let now = clock::now();
    let wanted = names(&["a.test"]);
    let authority = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        (rcgen::Issuer::new(params, key), pem)
    };
    let (issuer, its_own) = authority("an intermediate");
    // Of the same name, as a CA has after it changed its key.
    let (_, another) = authority("an intermediate");
    let mut params = CertificateParams::new(texts(&wanted)).unwrap();
    params.not_after = now + Duration::DAY;
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap().pem();
    let judge = |chain: &str| {
        let verified = verified(chain, &key, &wanted, now);
        verified.map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(judge(&format!("{leaf}{its_own}")), Ok(()));
    assert_eq!(judge(&format!("{leaf}{another}{its_own}")), Ok(()));
    assert_eq!(judge(&leaf), Ok(()), "a CA without intermediates");
    let wrong = judge(&format!("{leaf}{another}")).unwrap_err();
    assert!(wrong.contains("issued the leaf"), "{wrong}");
    let cut = judge(&format!("{leaf}{}", &its_own[..its_own.len() / 2])).unwrap_err();
    assert!(cut.contains("unusable"), "{cut}");
}

/// One that does not tell its time would hold up its certificate's name without an end.
#[test]
fn what_has_expired_here_has_expired_at_the_ca_unless_that_says_otherwise() {
    let now = clock::now();
    let at = now - Duration::DAY;
    assert!(has_expired(at, now, None));
    assert!(has_expired(at, now, Some(Duration::ZERO)));
    assert!(has_expired(at, now, Some(-Duration::HOUR)));
    assert!(!has_expired(at, now, Some(Duration::days(-2))));
}

fn put_pending(dir: &Path, made: &Made, created_at: OffsetDateTime) -> PendingDir {
    let pending = Pending {
        ca: "https://ca.test/dir".to_owned(),
        order_url: "https://ca.test/order/1".to_owned(),
        names: vec!["a.test".to_owned()],
        key_type: "p256".to_owned(),
        created_at,
        number: None,
    };
    let pending_dir = PendingDir::of(dir);
    pending_dir
        .write(ORDER_FILE, &serde_json::to_vec(&pending).unwrap())
        .unwrap();
    let key = made.key.serialize_pem();
    pending_dir
        .write(generation::PRIVATE_KEY, key.as_bytes())
        .unwrap();
    pending_dir
        .write(generation::FULLCHAIN, made.chain.as_bytes())
        .unwrap();
    pending_dir
}

#[test]
fn a_fetched_certificate_survives_a_crash_without_a_request() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let now = clock::now();
    let wanted = names(&["a.test"]);
    assert!(complete_pending(dir, &wanted, KeyType::P256, &Histories::new(), now).is_none());
    let made = made(&["a.test"], now + Duration::DAY);
    let pending = put_pending(dir, &made, now);
    // Not for other names, and not after a day.
    assert!(
        complete_pending(
            dir,
            &names(&["b.test"]),
            KeyType::P256,
            &Histories::new(),
            now
        )
        .is_none()
    );
    assert!(complete_pending(dir, &wanted, KeyType::P384, &Histories::new(), now).is_none());
    assert!(
        complete_pending(
            dir,
            &wanted,
            KeyType::P256,
            &Histories::new(),
            now + Duration::days(2)
        )
        .is_none()
    );
    let issued = complete_pending(dir, &wanted, KeyType::P256, &Histories::new(), now).unwrap();
    let stored = generation::read_current(dir).unwrap().unwrap();
    assert_eq!(stored.leaf.serial, issued.leaf.serial);
    assert_eq!(stored.meta.ca.as_deref(), Some("https://ca.test/dir"));
    assert_eq!(
        stored.meta.order_url.as_deref(),
        Some("https://ca.test/order/1")
    );
    assert!(!pending.0.exists());
}

#[test]
fn an_interrupted_order_with_a_useless_chain_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let now = clock::now();
    let mut made = made(&["a.test"], now + Duration::DAY);
    made.key = KeyPair::generate().unwrap();
    let pending = put_pending(directory.path(), &made, now);
    let wanted = names(&["a.test"]);
    assert!(
        complete_pending(
            directory.path(),
            &wanted,
            KeyType::P256,
            &Histories::new(),
            now
        )
        .is_none()
    );
    assert!(!pending.0.exists());
}

#[test]
fn a_key_that_has_ended_is_not_that_of_an_interrupted_order_either() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let (now, wanted) = (clock::now(), names(&["a.test"]));
    let mut made = made(&["a.test"], now + Duration::DAY);
    put_pending(dir, &made, now);
    let issued = complete_pending(dir, &wanted, KeyType::P256, &Histories::new(), now).unwrap();
    // The next one keeps its key.
    let pending = put_pending(dir, &made, now);
    discard_key(dir, &Histories::new(), now, |_| false);
    assert!(pending.0.exists());
    discard_key(dir, &Histories::new(), now, |serial| {
        serial == issued.leaf.serial
    });
    assert!(!pending.0.exists());
    made.key = KeyPair::generate().unwrap();
    let pending = put_pending(dir, &made, now);
    discard_key(dir, &Histories::new(), now, |_| true);
    assert!(pending.0.exists(), "it has a key of its own");
}

#[test]
fn an_order_on_disk_is_one_to_go_on_with() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let wanted = names(&["a.test"]);
    let read = |wanted: &[Name], key_type| unfinished(dir, wanted, key_type);
    assert_eq!(read(&wanted, KeyType::P256), None);
    let now = clock::now();
    let made = made(&["a.test"], now + Duration::DAY);
    let pending = put_pending(dir, &made, now);
    assert_eq!(
        read(&wanted, KeyType::P256),
        None,
        "nobody knows its number"
    );
    let mut order = pending.read().unwrap().0;
    order.number = Some(7);
    let bytes = serde_json::to_vec(&order).unwrap();
    pending.write(ORDER_FILE, &bytes).unwrap();
    let found = read(&wanted, KeyType::P256).unwrap();
    assert_eq!(
        (found.ca.as_str(), found.number),
        ("https://ca.test/dir", 7)
    );
    assert_eq!(read(&wanted, KeyType::P384), None);
    assert_eq!(read(&names(&["b.test"]), KeyType::P256), None);
    pending.discard();
    assert_eq!(read(&wanted, KeyType::P256), None);
}

#[test]
fn an_old_order_on_disk_ends_no_other_that_has_its_number_now() {
    let ca = "https://ca.test/dir";
    let pending = |name: &str| Pending {
        ca: ca.to_owned(),
        order_url: "https://ca.test/order/1".to_owned(),
        names: vec![name.to_owned()],
        key_type: "p256".to_owned(),
        created_at: clock::now(),
        number: Some(0),
    };
    let history = History::in_memory();
    history
        .order(&names(&["a.test"]), false, clock::now())
        .unwrap();
    let number = |name: &str, ca: &str| history.judge(|past| pending(name).number_in(ca, past));
    assert_eq!(number("a.test", ca), Some(0));
    assert_eq!(number("b.test", ca), None);
    assert_eq!(number("a.test", "https://other.test/dir"), None);
}

/// Its history, with an order that the CA was told to issue for, and that order on disk with a
/// certificate for these names.
fn finalized(dir: &Path, names: &[&str]) -> (Histories, PendingDir, Made) {
    let now = clock::now();
    let made = made(names, now + Duration::DAY);
    let pending_dir = put_pending(dir, &made, now);
    let mut order = pending_dir.read().unwrap().0;
    let history = History::in_memory();
    let wanted: Vec<Name> = order.names.iter().map(|it| it.parse().unwrap()).collect();
    let number = history.order(&wanted, false, now).unwrap();
    history.placed(number, &order.order_url).unwrap();
    history.finalized(number).unwrap();
    order.number = Some(number);
    let bytes = serde_json::to_vec(&order).unwrap();
    pending_dir.write(ORDER_FILE, &bytes).unwrap();
    let histories = [(order.ca, Arc::new(history))].into();
    (histories, pending_dir, made)
}

fn is_open(histories: &Histories) -> bool {
    let wanted = ["a.test".to_owned()];
    let each = histories.values();
    let mut open = each.map(|it| it.judge(|past| past.is_open(0, &wanted, clock::now())));
    open.all(|open| open)
}

#[test]
fn the_history_hears_of_an_interrupted_order_that_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let (dir, now, wanted) = (directory.path(), clock::now(), names(&["a.test"]));
    let (histories, pending, _) = finalized(dir, &["b.test"]);
    assert!(is_open(&histories));
    assert!(complete_pending(dir, &wanted, KeyType::P256, &histories, now).is_none());
    assert!(!pending.0.exists() && !is_open(&histories));
    // One with a key that has ended.
    let (histories, _, made) = finalized(dir, &["a.test"]);
    assert!(complete_pending(dir, &wanted, KeyType::P256, &histories, now).is_some());
    let (histories, pending, _) = finalized(dir, &["a.test"]);
    let key = made.key.serialize_pem();
    pending
        .write(generation::PRIVATE_KEY, key.as_bytes())
        .unwrap();
    discard_key(dir, &histories, now, |_| true);
    assert!(!pending.0.exists() && !is_open(&histories));
}

#[test]
fn the_history_hears_of_an_order_whose_url_a_crash_kept_from_it() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let (_, pending, _) = finalized(dir, &["a.test"]);
    let history = Arc::new(History::in_memory());
    let order = pending.read().unwrap().0;
    let known: Histories = [(order.ca, Arc::clone(&history))].into();
    make_known(dir, &known);
    assert!(history.judge(Past::is_empty), "it knows nothing of it");
    let wanted = names(&["a.test"]);
    history.order(&wanted, false, clock::now()).unwrap();
    history.reopen(clock::now(), Duration::WEEK);
    assert!(!is_open(&known), "it was given up for lost");
    make_known(dir, &known);
    assert!(is_open(&known));
}
