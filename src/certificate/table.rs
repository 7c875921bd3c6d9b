//! The live table: which certificate each name gets. One [`Publisher`] replaces it in one atomic
//! step; any number of [`TableReader`]s look names up, without locks, I/O or allocation.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::certified_key::CertifiedKey;
use super::name::{self, Name};
use super::on_demand::LastAsked;

/// Where a certificate came from, in the order in which sources are preferred for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourceKind {
    /// `[[certificates.files]]`
    File,
    /// A drop folder.
    Folder,
    /// The state directory, issued by an ACME CA.
    Acme,
    /// The same, when a client asked for the name.
    OnDemand,
    /// The state directory, issued by the internal CA.
    Internal,
}

impl SourceKind {
    /// `file`, `acme` or `internal`, as the admin API and the metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            SourceKind::File | SourceKind::Folder => "file",
            SourceKind::Acme | SourceKind::OnDemand => "acme",
            SourceKind::Internal => "internal",
        }
    }

    /// Whether somebody else writes it.
    pub fn is_external(self) -> bool {
        matches!(self, SourceKind::File | SourceKind::Folder)
    }
}

/// A certificate in service.
#[derive(Debug)]
pub struct LiveCertificate {
    pub key: CertifiedKey,
    pub source: SourceKind,
    /// The file that holds the certificate.
    pub path: Arc<Path>,
    /// The file that holds the key, if somebody else writes it.
    pub private_key: Option<Arc<Path>>,
    pub loaded_at: OffsetDateTime,
    /// When the file changed last.
    pub changed_at: OffsetDateTime,
    /// Noted for certificates that are had on demand alone.
    pub asked: LastAsked,
}

impl LiveCertificate {
    /// Whether a client that asks for `host` would accept the names of this certificate.
    pub fn covers(&self, host: &Name) -> bool {
        self.key.covers(host)
    }
}

/// What a name gets.
#[derive(Clone, Debug)]
pub struct Choice {
    pub best: Arc<LiveCertificate>,
    /// The best one with another key algorithm, for clients that cannot use `best`.
    pub alternate: Option<Arc<LiveCertificate>>,
    pub standing: Standing,
    /// The latest expiry among the valid certificates from files that cover the name; `None` if
    /// there is none.
    pub file_valid_until: Option<OffsetDateTime>,
    /// When the last of them is due for renewal.
    pub file_due_at: Option<OffsetDateTime>,
    /// Whether files on disk have the name at all, be they valid or not.
    pub file_known: bool,
}

impl Choice {
    /// Whether both are the same certificates.
    pub fn serves_the_same(&self, other: &Choice) -> bool {
        let same = |a: &Option<Arc<LiveCertificate>>, b: &Option<Arc<LiveCertificate>>| match (a, b)
        {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        Arc::ptr_eq(&self.best, &other.best) && same(&self.alternate, &other.alternate)
    }
}

/// How good a choice is before names and sources are compared: valid beats invalid, then on disk
/// beats vanished, then the better claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    pub valid: bool,
    pub on_disk: bool,
    pub claim: Claim,
}

/// What a certificate may claim of a name for which we take over from a late renewer; of any
/// other name every one has the ordinary claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// Somebody else renews it, and has not done so in time.
    Overdue,
    /// Ours, in place of one that is overdue.
    Stopgap,
    Ordinary,
}

/// An immutable state of the whole table. Cheap to clone: the maps are persistent.
#[derive(Clone, Default)]
pub struct Table {
    exact: imbl::HashMap<Arc<str>, Arc<Choice>>,
    /// By the parent: `*.example.com` stands under `example.com`.
    wildcard: imbl::HashMap<Arc<str>, Arc<Choice>>,
    addresses: imbl::HashMap<IpAddr, Arc<Choice>>,
    default_name: Option<Name>,
}

/// The longest DNS name there is, in characters.
const MAX_NAME: usize = 253;

impl Table {
    /// An empty table whose certificate of last resort is that of `default_name`.
    pub fn new(default_name: Option<Name>) -> Table {
        Table {
            default_name,
            ..Table::default()
        }
    }

    /// Makes the certificate of `name` the one of last resort.
    pub fn set_default(&mut self, name: Option<Name>) {
        self.default_name = name;
    }

    /// Sets or removes what `name` gets, and returns what it had.
    pub fn set(&mut self, name: &Name, choice: Option<Choice>) -> Option<Arc<Choice>> {
        match (name, choice.map(Arc::new)) {
            (Name::Dns(dns), Some(choice)) => self.exact.insert(dns.clone(), choice),
            (Name::Dns(dns), None) => self.exact.remove(dns),
            (Name::Wildcard(parent), Some(choice)) => self.wildcard.insert(parent.clone(), choice),
            (Name::Wildcard(parent), None) => self.wildcard.remove(parent),
            (Name::Ip(ip), Some(choice)) => self.addresses.insert(*ip, choice),
            (Name::Ip(ip), None) => self.addresses.remove(ip),
        }
    }

    /// All names that have a certificate, in no order.
    pub fn names(&self) -> impl Iterator<Item = Name> {
        let exact = self.exact.keys().cloned().map(Name::Dns);
        let wildcard = self.wildcard.keys().cloned().map(Name::Wildcard);
        let addresses = self.addresses.keys().copied().map(Name::Ip);
        exact.chain(wildcard).chain(addresses)
    }

    /// What a canonical name gets. Exact names come before wildcards, unless the wildcard stands
    /// better (the exact one has expired, or its file has vanished).
    pub fn get(&self, name: &Name) -> Option<&Arc<Choice>> {
        match name {
            Name::Dns(dns) => self.get_dns(dns),
            Name::Wildcard(parent) => self.wildcard.get(parent),
            Name::Ip(ip) => self.addresses.get(ip),
        }
    }

    /// The choices that cover a name: its own and its wildcard's.
    pub fn covering(&self, name: &Name) -> impl Iterator<Item = &Arc<Choice>> {
        let (own, wildcard) = match name {
            Name::Dns(dns) => (self.exact.get(dns), self.wildcard_for(dns)),
            Name::Wildcard(parent) => (self.wildcard.get(parent), None),
            Name::Ip(ip) => (self.addresses.get(ip), None),
        };
        own.into_iter().chain(wildcard)
    }

    fn wildcard_for(&self, dns: &str) -> Option<&Arc<Choice>> {
        self.wildcard.get(name::parent(dns)?)
    }

    fn get_dns(&self, dns: &str) -> Option<&Arc<Choice>> {
        match (self.exact.get(dns), self.wildcard_for(dns)) {
            (Some(exact), Some(wildcard)) if wildcard.standing > exact.standing => Some(wildcard),
            (exact, wildcard) => exact.or(wildcard),
        }
    }

    /// What a ClientHello gets: by its server name, in any case and with or without the trailing
    /// dot; without one by the address it came in on; failing that the default.
    pub fn select(&self, server_name: Option<&str>, local: IpAddr) -> Option<&Arc<Choice>> {
        self.select_own(server_name, local)
            .or_else(|| self.last_resort())
    }

    /// [`select`](Self::select) without the default.
    pub fn select_own(&self, server_name: Option<&str>, local: IpAddr) -> Option<&Arc<Choice>> {
        match server_name {
            Some(text) => self.get_text(text),
            None => self.addresses.get(&local.to_canonical()),
        }
    }

    /// The default.
    pub fn last_resort(&self) -> Option<&Arc<Choice>> {
        self.get(self.default_name.as_ref()?)
    }

    fn get_text(&self, text: &str) -> Option<&Arc<Choice>> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut buffer = [0; MAX_NAME];
        let lower = buffer.get_mut(..text.len())?;
        lower.copy_from_slice(text.as_bytes());
        lower.make_ascii_lowercase();
        let dns = std::str::from_utf8(lower).ok()?;
        // Some clients send an address as the server name, against RFC 6066 section 3.
        self.get_dns(dns).or_else(|| {
            self.addresses
                .get(&dns.parse::<IpAddr>().ok()?.to_canonical())
        })
    }

    /// How many names have a certificate.
    pub fn len(&self) -> usize {
        self.exact.len() + self.wildcard.len() + self.addresses.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The only way to change the live table. Not `Clone`: there is one, and the reloader owns it.
pub struct Publisher {
    table: Arc<ArcSwap<Table>>,
    progress: watch::Sender<Progress>,
    wanted: Arc<Mutex<Vec<Box<str>>>>,
}

/// Reads the live table.
#[derive(Clone)]
pub struct TableReader {
    table: Arc<ArcSwap<Table>>,
    progress: watch::Receiver<Progress>,
    wanted: Arc<Mutex<Vec<Box<str>>>>,
}

/// How far the first load is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    done: bool,
    /// How many parts of it were published.
    parts: u64,
}

/// So many names are loaded before their turn; a flood of nonsense must not slow the load down.
const MAX_WANTED: usize = 64;

/// An empty live table: its writer and its first reader.
pub fn live_table(default_name: Option<Name>) -> (Publisher, TableReader) {
    let table = Arc::new(ArcSwap::from_pointee(Table::new(default_name)));
    let (sender, receiver) = watch::channel(Progress::default());
    let wanted = Arc::new(Mutex::new(Vec::new()));
    let publisher = Publisher {
        table: table.clone(),
        progress: sender,
        wanted: wanted.clone(),
    };
    let reader = TableReader {
        table,
        progress: receiver,
        wanted,
    };
    (publisher, reader)
}

impl Publisher {
    /// Replaces the live table. Handshakes that begin after this see the new one.
    pub fn publish(&self, table: Table) {
        self.table.store(Arc::new(table));
        self.progress.send_if_modified(|progress| {
            progress.parts += 1;
            // Once everything is loaded nobody waits for a part any more.
            !progress.done
        });
    }

    /// Says that everything that was on disk at the start has been looked at, so that a name
    /// which is not in the table is unknown and no longer just not loaded yet.
    pub fn first_load_done(&self) {
        self.progress.send_modify(|progress| progress.done = true);
    }

    /// Puts first what handshakes wait for, if they have asked since `heard` was last brought up
    /// to date. Which file holds a name is not known before it is read, but most people call their
    /// files after what is in them.
    pub fn bring_forward<T>(
        &self,
        items: &mut [T],
        heard: &mut usize,
        path: impl Fn(&T) -> &Arc<Path>,
    ) {
        let wanted = {
            let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            let new = wanted.get(*heard..).unwrap_or_default().to_vec();
            *heard = wanted.len();
            new
        };
        for name in wanted {
            let (label, parent) = name.split_once('.').unwrap_or((&name, ""));
            let wildcard = format!("wildcard.{parent}");
            let found = to_front(items, |item| {
                let text = path(item).to_string_lossy();
                text.contains(&*name) || text.contains(&wildcard)
            });
            if found == 0 {
                to_front(items, |item| path(item).to_string_lossy().contains(label));
            }
        }
    }
}

/// Moves the items that fit to the front. Returns how many there are.
fn to_front<T>(items: &mut [T], fits: impl Fn(&T) -> bool) -> usize {
    let mut front = 0;
    for at in 0..items.len() {
        if fits(&items[at]) {
            items.swap(front, at);
            front += 1;
        }
    }
    front
}

impl TableReader {
    pub fn load(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    /// Whether the first load is over.
    pub fn is_loaded(&self) -> bool {
        self.progress.borrow().done
    }

    /// Waits for the first load to be over.
    pub async fn loaded(&self) {
        // The sender lives as long as the reloader; once that is gone nothing more will load.
        let _ = self
            .progress
            .clone()
            .wait_for(|progress| progress.done)
            .await;
    }

    /// Asks for a name before its turn in the first load.
    pub fn want(&self, name: &str) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let name = name.to_ascii_lowercase();
        if wanted.len() < MAX_WANTED && !wanted.iter().any(|known| **known == *name) {
            wanted.push(name.into());
        }
    }

    /// Something to wait on for the next part of the first load. What is published from now on
    /// counts.
    pub fn parts(&self) -> Parts {
        let mut progress = self.progress.clone();
        progress.mark_unchanged();
        Parts(progress)
    }
}

/// See [`TableReader::parts`].
pub struct Parts(watch::Receiver<Progress>);

impl Parts {
    /// Waits until another part of the first load is published, or all of it is.
    pub async fn next(&mut self) {
        // An error means that the reloader is gone, and nothing more will load.
        let _ = self.0.changed().await;
    }
}
