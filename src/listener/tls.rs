//! TLS settings, and the choice of what a ClientHello gets: the one place in which SNI, the live
//! table, the challenge table and ALPN meet.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use boring::error::ErrorStack;
use boring::ex_data::Index;
use boring::ssl::{
    AlpnError, ClientHello, ExtensionType, NameType, SelectCertError, SniError, Ssl, SslAcceptor,
    SslAlert, SslMethod, SslRef, select_next_proto,
};

use crate::acme::challenges::Challenges;
use crate::certificate::table::{Choice, LiveCertificate, TableReader};

/// Key exchanges, the preferred ones first: hybrid post-quantum, then the fast curve.
const GROUPS: &str = "X25519MLKEM768:X25519:P-256:P-384";

/// What is offered to ordinary clients, in ALPN's wire form (RFC 7301).
const HTTP: &[u8] = b"\x02h2\x08http/1.1";

/// What a TLS-ALPN-01 validation offers, and nothing else (RFC 8737 section 4).
const ACME_TLS: &[u8] = b"\x0aacme-tls/1";

/// What the handshake needs to know and what it settled; it rides on the `Ssl`.
struct HandshakeState {
    local: IpAddr,
    selection: Selection,
}

enum Selection {
    /// The ClientHello has not been seen yet.
    Open,
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

/// TLS 1.2 and 1.3, with certificates out of the live table.
pub fn acceptor(table: TableReader, challenges: Challenges) -> Result<SslAcceptor, ErrorStack> {
    // Made now, where a failure has somebody to tell.
    state_index()?;
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls())?;
    builder.set_curves_list(GROUPS)?;
    builder.set_select_certificate_callback(move |hello| select(hello, &table, &challenges));
    builder.set_servername_callback(refuse_unknown_name);
    builder.set_alpn_select_callback(choose_protocol);
    Ok(builder.build())
}

/// A handshake to come on a connection to the address `local`.
pub fn new_handshake(acceptor: &SslAcceptor, local: IpAddr) -> Result<Ssl, ErrorStack> {
    let mut ssl = Ssl::new(acceptor.context())?;
    let state = HandshakeState {
        local,
        selection: Selection::Open,
    };
    ssl.set_ex_data(state_index()?, state);
    Ok(ssl)
}

/// The certificate that the handshake was given; `None` before that and for challenges.
pub fn served(ssl: &SslRef) -> Option<Arc<LiveCertificate>> {
    match &state(ssl)?.selection {
        Selection::Certificate(choice) => Some(choice.best.clone()),
        _ => None,
    }
}

/// What the handshake came to so far.
pub fn outcome(ssl: &SslRef) -> Outcome {
    match state(ssl).map(|state| &state.selection) {
        Some(Selection::Certificate(_)) => Outcome::Served,
        Some(Selection::Challenge) => Outcome::Challenge,
        Some(Selection::Refused) => Outcome::Refused,
        Some(Selection::Open) | None => Outcome::Open,
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
/// is unknown while the first load still runs suspends the handshake; the accept loop resumes it.
fn select(
    mut hello: ClientHello<'_>,
    table: &TableReader,
    challenges: &Challenges,
) -> Result<(), SelectCertError> {
    if offers_acme_tls(&hello) {
        return answer_challenge(hello, challenges);
    }
    let local = state(hello.ssl()).ok_or(SelectCertError::ERROR)?.local;
    let choice = {
        let table = table.load();
        table
            .select(hello.servername(NameType::HOST_NAME), local)
            .cloned()
    };
    let ssl = hello.ssl_mut();
    match choice {
        Some(choice) => {
            ssl.add_credential(choice.best.key.credential())
                .map_err(|_| SelectCertError::ERROR)?;
            if let Some(alternate) = &choice.alternate {
                ssl.add_credential(alternate.key.credential())
                    .map_err(|_| SelectCertError::ERROR)?;
            }
            settle(ssl, Selection::Certificate(choice))
        }
        None if table.is_loaded() => settle(ssl, Selection::Refused),
        None => {
            if let Some(name) = ssl.servername(NameType::HOST_NAME) {
                table.want(name);
            }
            Err(SelectCertError::RETRY)
        }
    }
}

fn answer_challenge(
    mut hello: ClientHello<'_>,
    challenges: &Challenges,
) -> Result<(), SelectCertError> {
    let credential = hello
        .servername(NameType::HOST_NAME)
        .and_then(|name| challenges.tls_alpn01(&name.to_ascii_lowercase()));
    let ssl = hello.ssl_mut();
    match credential {
        Some(credential) => {
            ssl.add_credential(&credential)
                .map_err(|_| SelectCertError::ERROR)?;
            settle(ssl, Selection::Challenge)
        }
        None => settle(ssl, Selection::Refused),
    }
}

fn settle(ssl: &mut SslRef, selection: Selection) -> Result<(), SelectCertError> {
    let index = state_index().map_err(|_| SelectCertError::ERROR)?;
    match ssl.ex_data_mut(index) {
        Some(state) => {
            state.selection = selection;
            Ok(())
        }
        None => Err(SelectCertError::ERROR),
    }
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
