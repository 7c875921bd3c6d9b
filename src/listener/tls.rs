//! TLS settings, and the choice of what a ClientHello gets: the one place in which SNI, the live
//! table, the challenge table and ALPN meet.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use boring::error::ErrorStack;
use boring::ex_data::Index;
use boring::ssl::{
    AlpnError, ClientHello, ExtensionType, NameType, SelectCertError, SniError, Ssl, SslAcceptor,
    SslAcceptorBuilder, SslAlert, SslMethod, SslRef, select_next_proto,
};
use boring_sys as ffi;
use foreign_types::ForeignTypeRef;

use super::client_auth::{self, ClientAuthTable, Demand};
use super::tickets::SessionTickets;
use crate::acme::challenges::Challenges;
use crate::acme::subject::Subject;
use crate::certificate::table::{Choice, LiveCertificate, SourceKind, TableReader};
use crate::clock;
use crate::on_demand::OnDemand;

/// Key exchanges, the preferred ones first: hybrid post-quantum, then the fast curve.
const GROUPS: &str = "X25519MLKEM768:X25519:P-256:P-384";

/// What is offered to ordinary clients, in ALPN's wire form (RFC 7301).
const HTTP: &[u8] = b"\x02h2\x08http/1.1";

/// What a TLS-ALPN-01 validation offers, and nothing else (RFC 8737 section 4).
const ACME_TLS: &[u8] = b"\x0aacme-tls/1";

/// What the handshake needs to know and what it settled; it rides on the `Ssl`.
struct HandshakeState {
    acceptor: Acceptor,
    selection: Selection,
    demand: Option<Demand>,
    /// Whether the handshake makes do with what there is: it has waited for its certificate, or
    /// may not have one ordered.
    makes_do: AtomicBool,
}

/// Who accepted the connection.
#[derive(Clone, Copy)]
enum Acceptor {
    /// Our own accept loop, on this address. It resumes a handshake that was suspended in the
    /// early callback.
    Own(IpAddr),
    /// Pingora's. It says nothing of the address, and resumes a handshake only where that wants
    /// its certificate: [`late_choice`] is called there.
    Pingora,
}

impl Acceptor {
    /// By which address a certificate is chosen where there is no server name.
    fn local(self) -> IpAddr {
        match self {
            Acceptor::Own(local) => local,
            // No certificate is for this one.
            Acceptor::Pingora => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        }
    }
}

enum Selection {
    /// The ClientHello has not been seen yet.
    Open,
    /// No certificate fits, and this one may be had on demand.
    Wanted(Subject),
    Certificate(Arc<Choice>),
    Challenge,
    /// No certificate fits, and there is no default.
    Refused,
}

/// Why a handshake is waiting or over: what the acceptor's error does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Served,
    Challenge,
    Refused,
    Open,
}

/// How sessions are made and resumed, and which clients are served.
#[derive(Clone)]
pub struct Sessions {
    pub tickets: SessionTickets,
    pub policy: Arc<ArcSwap<SessionPolicy>>,
}

/// What the configuration says of sessions and clients.
pub struct SessionPolicy {
    /// Whether a session may outlive the certificate that it was made under.
    pub resume_after_swap: bool,
    pub client_auth: ClientAuthTable,
}

/// Where certificates come from.
#[derive(Clone)]
pub struct Certificates {
    pub table: TableReader,
    pub challenges: Challenges,
    /// Where those that are not in the table can be had, if anywhere.
    pub on_demand: Option<OnDemand>,
}

impl Certificates {
    /// Those in the live table, and no others.
    pub fn new(table: TableReader, challenges: Challenges) -> Certificates {
        Certificates {
            table,
            challenges,
            on_demand: None,
        }
    }

    /// Those that are not there on demand.
    pub fn or(self, on_demand: &OnDemand) -> Certificates {
        Certificates {
            on_demand: Some(on_demand.clone()),
            ..self
        }
    }
}

/// TLS 1.2 and 1.3, with certificates out of the live table.
pub fn acceptor(certificates: Certificates, sessions: Sessions) -> Result<SslAcceptor, ErrorStack> {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls())?;
    install(&mut builder, certificates, sessions)?;
    Ok(builder.build())
}

/// Makes an acceptor like [`acceptor`]'s out of one with the same protocols and ciphers.
pub fn install(
    builder: &mut SslAcceptorBuilder,
    certificates: Certificates,
    sessions: Sessions,
) -> Result<(), ErrorStack> {
    // Made now, where a failure has somebody to tell.
    state_index()?;
    builder.set_curves_list(GROUPS)?;
    sessions.tickets.install(builder);
    let policy = sessions.policy;
    builder
        .set_select_certificate_callback(move |hello| select(hello, &certificates, &policy.load()));
    builder.set_servername_callback(refuse_unknown_name);
    builder.set_alpn_select_callback(choose_protocol);
    Ok(())
}

/// A handshake to come on a connection to the address `local`. `demands`: whether it may have a
/// certificate ordered.
pub fn new_handshake(
    acceptor: &SslAcceptor,
    local: IpAddr,
    demands: bool,
) -> Result<Ssl, ErrorStack> {
    let mut ssl = Ssl::new(acceptor.context())?;
    shed_configuration(&mut ssl);
    let state = HandshakeState::new(Acceptor::Own(local), !demands);
    ssl.set_ex_data(state_index()?, state);
    Ok(ssl)
}

/// Has BoringSSL forget how the handshake was configured once it is over: most of a KiB that a
/// connection would keep for its life, and that nobody asks for then.
fn shed_configuration(ssl: &mut SslRef) {
    // SAFETY: `ssl` is valid, and nobody else has it. It only sets a flag; what is asked after the
    // handshake are results of it (ssl.h, SSL_set_shed_handshake_config).
    unsafe { ffi::SSL_set_shed_handshake_config(ssl.as_ptr(), 1) }
}

impl HandshakeState {
    fn new(acceptor: Acceptor, makes_do: bool) -> HandshakeState {
        HandshakeState {
            acceptor,
            selection: Selection::Open,
            demand: None,
            makes_do: AtomicBool::new(makes_do),
        }
    }
}

/// The certificate that the handshake was given; `None` before that and for challenges.
pub fn served(ssl: &SslRef) -> Option<Arc<LiveCertificate>> {
    match &state(ssl)?.selection {
        Selection::Certificate(choice) => Some(choice.best.clone()),
        _ => None,
    }
}

/// What the handshake waits for that may be had on demand.
pub fn wanted(ssl: &SslRef) -> Option<&Subject> {
    match &state(ssl)?.selection {
        Selection::Wanted(subject) => Some(subject),
        _ => None,
    }
}

/// The handshake waits for nothing more.
pub fn make_do(ssl: &SslRef) {
    if let Some(state) = state(ssl) {
        state.makes_do.store(true, Ordering::Relaxed);
    }
}

/// What the client had to show, if anything.
pub fn demand(ssl: &SslRef) -> Option<&Demand> {
    state(ssl)?.demand.as_ref()
}

/// What the handshake came to so far.
pub fn outcome(ssl: &SslRef) -> Outcome {
    match state(ssl).map(|state| &state.selection) {
        Some(Selection::Certificate(_)) => Outcome::Served,
        Some(Selection::Challenge) => Outcome::Challenge,
        Some(Selection::Refused) => Outcome::Refused,
        Some(Selection::Open | Selection::Wanted(_)) | None => Outcome::Open,
    }
}

fn state_index() -> Result<Index<Ssl, HandshakeState>, ErrorStack> {
    static INDEX: OnceLock<Index<Ssl, HandshakeState>> = OnceLock::new();
    if let Some(index) = INDEX.get() {
        return Ok(*index);
    }
    let index = Ssl::new_ex_index()?;
    Ok(*INDEX.get_or_init(|| index))
}

fn state(ssl: &SslRef) -> Option<&HandshakeState> {
    ssl.ex_data(state_index().ok()?)
}

/// The early callback: looks the server name up and hands BoringSSL the credential. A name that
/// is unknown while the first load still runs, or can be had on demand, suspends the handshake, at
/// once or where the certificate is wanted; whoever accepted the connection resumes it.
fn select(
    mut hello: ClientHello<'_>,
    certificates: &Certificates,
    policy: &SessionPolicy,
) -> Result<(), SelectCertError> {
    let acceptor = accepted_by(hello.ssl_mut()).map_err(|_| SelectCertError::ERROR)?;
    if offers_acme_tls(&hello) {
        return answer_challenge(hello, &certificates.challenges);
    }
    let Certificates {
        table, on_demand, ..
    } = certificates;
    let on_demand = on_demand.as_ref();
    let settled = choose(hello.ssl_mut(), acceptor.local(), table, on_demand, policy)
        .map_err(|_| SelectCertError::ERROR)?;
    match acceptor {
        Acceptor::Own(_) if !settled => Err(SelectCertError::RETRY),
        _ => Ok(()),
    }
}

/// Settles a handshake that the early callback had to leave open, as soon as the first load comes
/// to its certificate or is over.
pub async fn late_choice(
    ssl: &mut SslRef,
    table: &TableReader,
    policy: &ArcSwap<SessionPolicy>,
) -> Result<(), ErrorStack> {
    let local = Acceptor::Pingora.local();
    let mut parts = table.parts();
    while outcome(ssl) == Outcome::Open && !choose(ssl, local, table, None, &policy.load())? {
        parts.next().await;
    }
    Ok(())
}

/// Hands BoringSSL the credential for the server name, or without one for the address `local`.
/// `false`: the first load may still come to it, or it may be had on demand.
fn choose(
    ssl: &mut SslRef,
    local: IpAddr,
    table: &TableReader,
    on_demand: Option<&OnDemand>,
    policy: &SessionPolicy,
) -> Result<bool, ErrorStack> {
    // Asked first: what the end of the load brought is then in the table.
    let loaded = table.is_loaded();
    let name = ssl.servername(NameType::HOST_NAME);
    let live = table.load();
    let own = live.select_own(name, local);
    if let (Some(name), Some(on_demand)) = (name, on_demand)
        && own.is_none_or(|own| !own.best.key.is_valid_at(clock::now()))
        && state(ssl).is_some_and(|state| !state.makes_do.load(Ordering::Relaxed))
        && let Some(subject) = on_demand.wanted(name)
    {
        match loaded {
            true => settle(ssl, Selection::Wanted(subject))?,
            false => table.want(name),
        }
        return Ok(false);
    }
    let Some(choice) = own.or_else(|| live.last_resort()).cloned() else {
        if loaded {
            settle(ssl, Selection::Refused)?;
        } else if let Some(name) = name {
            table.want(name);
        }
        return Ok(loaded);
    };
    if choice.best.source == SourceKind::OnDemand {
        choice.best.asked.note(clock::now());
    }
    let auth = policy.client_auth.get(name, local).cloned();
    ssl.add_credential(choice.best.key.credential())?;
    if let Some(alternate) = &choice.alternate {
        ssl.add_credential(alternate.key.credential())?;
    }
    let demand = auth.map(|auth| Demand::make(ssl, &auth)).transpose()?;
    let leaves = std::iter::once(&choice.best)
        .chain(&choice.alternate)
        .filter(|_| !policy.resume_after_swap)
        .map(|leaf| leaf.key.fingerprint());
    client_auth::bind_sessions(ssl, demand.as_ref(), leaves)?;
    let state = state_mut(ssl)?;
    state.demand = demand;
    state.selection = Selection::Certificate(choice);
    Ok(true)
}

/// Who accepted the connection: whoever says nothing of it is not our accept loop.
fn accepted_by(ssl: &mut SslRef) -> Result<Acceptor, ErrorStack> {
    let index = state_index()?;
    if let Some(state) = ssl.ex_data(index) {
        return Ok(state.acceptor);
    }
    ssl.set_ex_data(index, HandshakeState::new(Acceptor::Pingora, true));
    Ok(Acceptor::Pingora)
}

fn answer_challenge(
    mut hello: ClientHello<'_>,
    challenges: &Challenges,
) -> Result<(), SelectCertError> {
    let credential = hello
        .servername(NameType::HOST_NAME)
        .and_then(|name| challenges.tls_alpn01(&name.to_ascii_lowercase()));
    let ssl = hello.ssl_mut();
    let settled = match credential {
        Some(credential) => ssl
            .add_credential(&credential)
            .and_then(|()| settle(ssl, Selection::Challenge)),
        None => settle(ssl, Selection::Refused),
    };
    settled.map_err(|_| SelectCertError::ERROR)
}

fn settle(ssl: &mut SslRef, selection: Selection) -> Result<(), ErrorStack> {
    state_mut(ssl)?.selection = selection;
    Ok(())
}

/// [`accepted_by`] made sure that there is one.
fn state_mut(ssl: &mut SslRef) -> Result<&mut HandshakeState, ErrorStack> {
    ssl.ex_data_mut(state_index()?).ok_or_else(ErrorStack::get)
}

/// The early callback can only end a handshake with `handshake_failure`; the alert that says what
/// is wrong has to come from here (RFC 6066 section 3).
fn refuse_unknown_name(ssl: &mut SslRef, alert: &mut SslAlert) -> Result<(), SniError> {
    if outcome(ssl) == Outcome::Refused {
        *alert = SslAlert::UNRECOGNIZED_NAME;
        return Err(SniError::ALERT_FATAL);
    }
    Ok(())
}

fn choose_protocol<'a>(ssl: &mut SslRef, offered: &'a [u8]) -> Result<&'a [u8], AlpnError> {
    let supported = match outcome(ssl) {
        Outcome::Challenge => ACME_TLS,
        _ => HTTP,
    };
    select_next_proto(supported, offered)
        .and_then(|chosen| position(offered, chosen))
        .ok_or(AlpnError::NOACK)
}

/// The same protocol as a slice of what the client offered, as the callback wants it.
fn position<'a>(offered: &'a [u8], chosen: &[u8]) -> Option<&'a [u8]> {
    let mut rest = offered;
    while let Some((&length, tail)) = rest.split_first() {
        let protocol = tail.get(..usize::from(length))?;
        if protocol == chosen {
            return Some(protocol);
        }
        rest = &tail[protocol.len()..];
    }
    None
}

/// Whether the ClientHello's ALPN extension is the single protocol `acme-tls/1`. ALPN is
/// negotiated only after the certificate was chosen, hence the look at the raw extension: a
/// two-byte length, then the list.
fn offers_acme_tls(hello: &ClientHello<'_>) -> bool {
    hello
        .get_extension(ExtensionType::APPLICATION_LAYER_PROTOCOL_NEGOTIATION)
        .and_then(|extension| extension.get(2..))
        == Some(ACME_TLS)
}
