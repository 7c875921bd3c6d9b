//! An ACME authority (RFC 8555, 9773) inside the test, for what Pebble cannot play: rate limits,
//! HTML errors, nonsense, hung connections, wrong certificates. It counts every request.

mod book;
mod issuing;
mod jws;
mod orders;
mod problem;
mod protocol;
mod revocation;
mod script;
mod validation;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

pub use problem::problem;
pub use revocation::{Named, Revocation};
pub use script::{CertificateFault, Fault, Kind, RenewalInfoAnswer, Script, Validation};

use super::certs::{TestCa, serial_of};
use super::place::Place;
use super::server::Server;
use book::{Book, OrderState};

/// Stopped when dropped. Plain HTTP: the product accepts that for loopback authorities.
pub struct ScriptedCa {
    /// The directory URL.
    pub directory: String,
    server: Server,
    shared: Arc<Shared>,
}

/// One request that arrived, answered or not.
#[derive(Clone, Debug)]
pub struct Logged {
    pub method: String,
    pub path: String,
    pub kind: Kind,
    pub at: Instant,
}

struct Shared {
    base: String,
    proxy: (SocketAddr, SocketAddr),
    ca: TestCa,
    script: Mutex<Script>,
    log: Mutex<Vec<Logged>>,
    book: Mutex<Book>,
}

impl ScriptedCa {
    /// Behaves well, and calls every challenge valid without looking.
    pub async fn start(place: &Place) -> ScriptedCa {
        let addr = place.free();
        let base = format!("http://{addr}");
        let shared = Arc::new(Shared {
            base: base.clone(),
            proxy: (place.http, place.https),
            ca: TestCa::new(),
            script: Mutex::default(),
            log: Mutex::default(),
            book: Mutex::default(),
        });
        let router = Router::new().fallback(protocol::handle);
        let server = Server::tcp(addr, router.with_state(Arc::clone(&shared))).await;
        ScriptedCa {
            directory: format!("{base}/directory"),
            server,
            shared,
        }
    }

    /// The `[acme]` table that orders here.
    pub fn acme_table(&self) -> String {
        format!("[acme]\ndirectory = \"{}\"\n", self.directory)
    }

    /// Changes its behaviour from the next request on.
    pub fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.shared.script.lock().unwrap());
    }

    /// Unreachable from now on: the listener and all connections are closed.
    pub async fn stop(&self) {
        self.server.stop().await;
    }

    /// Back on the same port.
    pub async fn resume(&self) {
        self.server.start().await;
    }

    pub fn requests(&self) -> Vec<Logged> {
        self.shared.log.lock().unwrap().clone()
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.requests()
            .iter()
            .filter(|entry| entry.kind == kind)
            .count()
    }

    /// The PEM chains it issued, oldest first.
    pub fn issued(&self) -> Vec<String> {
        self.shared.book.lock().unwrap().certificates.clone()
    }

    /// The serials of its certificates, oldest first, as `Served::serial` writes them.
    pub fn serials(&self) -> Vec<String> {
        let leaf = |pem: &String| CertificateDer::from_pem_slice(pem.as_bytes()).ok();
        let issued = self.issued();
        let leaves = issued.iter().filter_map(leaf);
        leaves.map(|der| serial_of(&der)).collect()
    }

    /// The tokens of all challenges so far.
    pub fn tokens(&self) -> Vec<String> {
        let book = self.shared.book.lock().unwrap();
        let authorizations = book.orders.iter().flat_map(|order| &order.authorizations);
        authorizations.map(|one| one.token.clone()).collect()
    }

    /// Every pending authorization is invalid from now on.
    pub fn fail_pending(&self) {
        while self.fail_oldest_pending().is_some() {}
    }

    /// Every pending authorization is valid from now on.
    pub fn pass_pending(&self) {
        let mut book = self.shared.book.lock().unwrap();
        let orders = book.orders.iter_mut();
        let all = orders.flat_map(|order| &mut order.authorizations);
        for one in all.filter(|one| one.status == "pending") {
            one.status = "valid";
        }
    }

    /// Looks, as the RFCs say, at what every pending authorization has been told to be ready: valid or
    /// not from now on. Why the last that is not is not.
    pub async fn look(&self, kind: &str) -> Result<(), String> {
        let mut result = Ok(());
        for (number, place, name, token, key) in self.shared.waiting() {
            let looked = self.shared.validate(kind, &name, &token, &key).await;
            let mut book = self.shared.book.lock().unwrap();
            let one = &mut book.orders[number].authorizations[place];
            one.status = if looked.is_ok() { "valid" } else { "invalid" };
            one.error = looked.clone().err();
            result = result.and(looked);
        }
        result
    }

    /// The oldest pending authorization is invalid from now on. Answers its name.
    pub fn fail_oldest_pending(&self) -> Option<String> {
        let mut book = self.shared.book.lock().unwrap();
        let orders = book.orders.iter_mut();
        let mut all = orders.flat_map(|order| &mut order.authorizations);
        let oldest = all.find(|one| one.status == "pending")?;
        oldest.status = "invalid";
        oldest.error = Some("it took too long".to_owned());
        oldest.identifier["value"].as_str().map(str::to_owned)
    }

    /// The names and tokens of the pending authorizations, oldest first.
    pub fn pending(&self) -> Vec<(String, String)> {
        let book = self.shared.book.lock().unwrap();
        let all = book.orders.iter().flat_map(|order| &order.authorizations);
        let pending = all.filter(|one| one.status == "pending");
        let name = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let each = pending.map(|one| (name(&one.identifier["value"]), one.token.clone()));
        each.collect()
    }

    /// Orders that are processing have their certificates from now on.
    pub fn finish_processing(&self) {
        let mut book = self.shared.book.lock().unwrap();
        let Book {
            orders,
            certificates,
            ..
        } = &mut *book;
        for order in orders {
            if let OrderState::Processing(chain) = &order.state {
                certificates.push(chain.clone());
                order.state = OrderState::Valid(certificates.len() - 1);
            }
        }
    }

    /// Orders that are processing are invalid from now on.
    pub fn fail_processing(&self) {
        let mut book = self.shared.book.lock().unwrap();
        for order in &mut book.orders {
            if let OrderState::Processing(_) = &order.state {
                order.state = OrderState::Open;
                order.authorizations[0].status = "invalid";
            }
        }
    }

    /// Knows no account any more, as a CA that was set up anew.
    pub fn forget_accounts(&self) {
        let mut book = self.shared.book.lock().unwrap();
        // Their numbers are not used again.
        for print in &mut book.accounts {
            print.clear();
        }
        book.keys.fill(serde_json::Value::Null);
    }

    /// The types of the challenges that it was told are ready, oldest first.
    pub fn challenges(&self) -> Vec<String> {
        let requests = self.requests().into_iter();
        let told = requests.filter(|one| one.kind == Kind::Challenge);
        let kinds = told.filter_map(|one| Some(one.path.rsplit('/').next()?.to_owned()));
        kinds.collect()
    }

    /// The `replaces` of each order, oldest first (RFC 9773 section 5).
    pub fn replaces(&self) -> Vec<Option<String>> {
        let book = self.shared.book.lock().unwrap();
        book.orders
            .iter()
            .map(|order| order.replaces.clone())
            .collect()
    }

    /// The profile of each order, oldest first.
    pub fn ordered_profiles(&self) -> Vec<Option<String>> {
        let book = self.shared.book.lock().unwrap();
        let profiles = book.orders.iter().map(|order| order.profile.clone());
        profiles.collect()
    }

    pub fn root_pem(&self) -> &str {
        &self.shared.ca.root_pem
    }
}

impl Default for Script {
    fn default() -> Script {
        Script {
            faults: Vec::new(),
            bad_nonces: 0,
            validation: Validation::Always,
            failing: Vec::new(),
            profiles: Vec::new(),
            missing_alternate: false,
            challenges: book::CHALLENGE_TYPES.to_vec(),
            stuck_in_processing: false,
            behind: Duration::ZERO,
            behind_is_told: true,
            certificate: CertificateFault::None,
            lifetime: Duration::from_secs(90 * 24 * 3600),
            renewal_info: None,
            revocation: Revocation::default(),
            refuse_replaces: None,
            moved: false,
        }
    }
}
