//! Questions to DNS servers: where a name leads, which zone it is in, who answers for that, and
//! what they have. It caches nothing: what is looked for has just changed.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use futures_util::StreamExt;
use hickory_net::client::Client;
use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::tcp::TcpClientStream;
use hickory_net::udp::UdpClientStream;
use hickory_net::xfer::{DnsHandle, DnsMultiplexer};
use hickory_proto::op::{DnsRequestOptions, DnsResponse, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::DnsError;
use crate::acme::preflight::Property;

const DNS_PORT: u16 = 53;
/// One question, repeated within by UDP.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Resolvers follow no more than this either.
const MAX_ALIASES: usize = 10;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// One authoritative server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NameServer {
    pub(super) name: String,
    pub(super) addresses: Vec<SocketAddr>,
}

#[derive(Clone, Debug)]
pub(in crate::acme) struct Lookup {
    resolvers: Vec<SocketAddr>,
    nameservers: Vec<SocketAddr>,
    /// Of the servers that NS records name.
    port: u16,
}

impl Lookup {
    /// `resolvers`: empty for the system's. `nameservers`: asked instead of a zone's own.
    pub(in crate::acme) fn new(resolvers: Vec<SocketAddr>, nameservers: Vec<SocketAddr>) -> Lookup {
        Lookup {
            resolvers,
            nameservers,
            port: DNS_PORT,
        }
    }

    /// Where the CNAME records from `name` lead; the name itself where it has none.
    pub(super) async fn behind_aliases(&self, name: &str) -> Result<String, DnsError> {
        let mut current = parse(name)?;
        for _ in 0..=MAX_ALIASES {
            let answer = self.ask_resolvers(&current, RecordType::CNAME).await?;
            let alias = answer.answers.iter().find_map(|record| match &record.data {
                RData::CNAME(target) if record.name == current => Some(target.0.clone()),
                _ => None,
            });
            match alias {
                Some(target) => current = target,
                None => return Ok(text(&current)),
            }
        }
        Err(DnsError::EndlessAlias(name.to_owned()))
    }

    /// The apex of the zone that has `name`.
    pub(super) async fn zone_of(&self, name: &str) -> Result<String, DnsError> {
        let mut current = parse(name)?;
        let whole = current.clone();
        while !current.is_root() {
            let answer = self.ask_resolvers(&current, RecordType::SOA).await?;
            // A server that has no SOA for the name itself says whose is the nearest.
            let told = answer.answers.iter().chain(&answer.authorities);
            let mut zones = told.filter(|record| is_soa_of(record, &whole));
            if let Some(zone) = zones.next() {
                return Ok(text(&zone.name));
            }
            current = current.base_name();
        }
        Err(DnsError::NoZone {
            name: name.to_owned(),
            resolver: self.resolvers_text(),
        })
    }

    /// The servers that answer for a zone, with all their addresses.
    pub(super) async fn servers_of(&self, zone: &str) -> Result<Vec<NameServer>, DnsError> {
        if !self.nameservers.is_empty() {
            let given = self.nameservers.iter().map(|address| NameServer {
                name: address.to_string(),
                addresses: vec![*address],
            });
            return Ok(given.collect());
        }
        let answer = self.ask_resolvers(&parse(zone)?, RecordType::NS).await?;
        let mut servers = Vec::new();
        for record in &answer.answers {
            if let RData::NS(server) = &record.data {
                servers.push(NameServer {
                    name: text(&server.0),
                    addresses: self.addresses_of(&server.0).await?,
                });
            }
        }
        match servers.is_empty() {
            true => Err(DnsError::NoZone {
                name: zone.to_owned(),
                resolver: self.resolvers_text(),
            }),
            false => Ok(servers),
        }
    }

    async fn addresses_of(&self, server: &Name) -> Result<Vec<SocketAddr>, DnsError> {
        let ips = self.ips_of(server).await?.into_iter();
        Ok(ips.map(|ip| SocketAddr::new(ip, self.port)).collect())
    }

    /// The addresses of a name, behind aliases.
    pub(in crate::acme) async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, DnsError> {
        self.ips_of(&parse(name)?).await
    }

    /// The CAA records of this very name, behind aliases (RFC 8659).
    pub(in crate::acme) async fn caa(&self, name: &str) -> Result<Vec<Property>, DnsError> {
        let answer = self.ask_resolvers(&parse(name)?, RecordType::CAA).await?;
        let records = answer.answers.iter();
        let properties = records.filter_map(|record| match &record.data {
            RData::CAA(caa) => Some(Property {
                critical: caa.issuer_critical,
                tag: caa.tag.to_ascii_lowercase(),
                value: String::from_utf8_lossy(&caa.value).into_owned(),
            }),
            _ => None,
        });
        Ok(properties.collect())
    }

    async fn ips_of(&self, server: &Name) -> Result<Vec<IpAddr>, DnsError> {
        let mut addresses = Vec::new();
        for kind in [RecordType::A, RecordType::AAAA] {
            let answer = self.ask_resolvers(server, kind).await?;
            let ips = answer
                .answers
                .iter()
                .filter_map(|record| match &record.data {
                    RData::A(ip) => Some(IpAddr::V4(ip.0)),
                    RData::AAAA(ip) => Some(IpAddr::V6(ip.0)),
                    _ => None,
                });
            addresses.extend(ips);
        }
        Ok(addresses)
    }

    /// The TXT records that this server, and nobody behind it, has for `name`.
    pub(super) async fn txt_at(
        &self,
        server: SocketAddr,
        name: &str,
    ) -> Result<Vec<String>, String> {
        let name = parse(name).map_err(|error| error.to_string())?;
        let answer = ask(server, &name, RecordType::TXT, false).await?;
        if !is_answer(&answer) {
            return Err(answer.metadata.response_code.to_string());
        }
        let own = answer.answers.iter().filter(|record| record.name == name);
        Ok(own.filter_map(txt_value).collect())
    }

    /// The TXT records that resolvers find for `name`, behind aliases.
    pub(super) async fn txt(&self, name: &str) -> Result<Vec<String>, DnsError> {
        let answer = self.ask_resolvers(&parse(name)?, RecordType::TXT).await?;
        Ok(answer.answers.iter().filter_map(txt_value).collect())
    }

    /// The first resolver that answers, with "there is none" or with something.
    async fn ask_resolvers(&self, name: &Name, kind: RecordType) -> Result<DnsResponse, DnsError> {
        let mut causes = Vec::new();
        for resolver in self.resolvers() {
            match ask(resolver, name, kind, true).await {
                Ok(answer) if is_answer(&answer) => return Ok(answer),
                Ok(answer) => {
                    causes.push(format!(
                        "{resolver} answers {}",
                        answer.metadata.response_code
                    ));
                }
                Err(cause) => causes.push(format!("{resolver}: {cause}")),
            }
        }
        if causes.is_empty() {
            causes.push(format!(
                "{RESOLV_CONF} names no server; set `resolvers` in [acme.dns]"
            ));
        }
        Err(DnsError::Lookup {
            what: format!("the {kind} records of {name}"),
            cause: causes.join("; "),
        })
    }

    /// Read anew each time: the system's change with the network.
    fn resolvers(&self) -> Vec<SocketAddr> {
        if !self.resolvers.is_empty() {
            return self.resolvers.clone();
        }
        let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        system_resolvers(&text)
    }

    fn resolvers_text(&self) -> String {
        let all = self.resolvers();
        let all: Vec<String> = all.iter().map(ToString::to_string).collect();
        all.join(", ")
    }
}

/// The `nameserver` lines of resolv.conf(5).
fn system_resolvers(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        let ip: IpAddr = words.next().filter(|_| is_server)?.parse().ok()?;
        Some(SocketAddr::new(ip, DNS_PORT))
    });
    servers.collect()
}

fn txt_value(record: &Record) -> Option<String> {
    match &record.data {
        RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
        _ => None,
    }
}

fn is_answer(answer: &DnsResponse) -> bool {
    matches!(
        answer.metadata.response_code,
        ResponseCode::NoError | ResponseCode::NXDomain
    )
}

fn is_soa_of(record: &Record, name: &Name) -> bool {
    record.record_type() == RecordType::SOA && record.name.zone_of(name)
}

fn parse(name: &str) -> Result<Name, DnsError> {
    let parsed = Name::from_str(name).map_err(|error| DnsError::Lookup {
        what: name.to_owned(),
        cause: error.to_string(),
    });
    parsed.map(|mut name| {
        name.set_fqdn(true);
        name
    })
}

/// Lower-case and without the final dot.
fn text(name: &Name) -> String {
    let text = name.to_lowercase().to_ascii();
    text.strip_suffix('.').unwrap_or(&text).to_owned()
}

/// One question to one server, by UDP, and by TCP where the answer does not fit.
async fn ask(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    recursion: bool,
) -> Result<DnsResponse, String> {
    let asked = within(by_udp(server, name, kind, recursion)).await?;
    match asked.metadata.truncation {
        true => within(by_tcp(server, name, kind, recursion)).await,
        false => Ok(asked),
    }
}

async fn within(
    question: impl Future<Output = Result<DnsResponse, String>>,
) -> Result<DnsResponse, String> {
    let limited = tokio::time::timeout(TIMEOUT, question).await;
    limited.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")))
}

async fn by_udp(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    recursion: bool,
) -> Result<DnsResponse, String> {
    let stream = UdpClientStream::builder(server, TokioRuntimeProvider::new()).build();
    let (client, background) = Client::from_sender(stream);
    first_answer(client, background, name, kind, recursion).await
}

async fn by_tcp(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    recursion: bool,
) -> Result<DnsResponse, String> {
    let provider = TokioRuntimeProvider::new();
    let (connecting, sender) = TcpClientStream::new(server, None, Some(TIMEOUT), provider);
    let stream = connecting.await.map_err(|error| error.to_string())?;
    let (client, background) = Client::from_sender(DnsMultiplexer::new(stream, sender));
    first_answer(client, background, name, kind, recursion).await
}

async fn first_answer(
    client: Client<TokioRuntimeProvider>,
    background: impl Future + Send + 'static,
    name: &Name,
    kind: RecordType,
    recursion: bool,
) -> Result<DnsResponse, String> {
    // It ends when the client is dropped, or when the server closes, be it right after its answer.
    tokio::spawn(async move {
        background.await;
    });
    let mut options = DnsRequestOptions::default();
    options.use_edns = true;
    options.recursion_desired = recursion;
    let mut answers = client.lookup(Query::query(name.clone(), kind), options);
    match answers.next().await {
        Some(answer) => answer.map_err(|error| error.to_string()),
        None => Err("the connection was closed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hickory_proto::op::{Message, MessageType};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UdpSocket};

    use super::*;

    /// The records of a small world, in the form of a zone file.
    const WORLD: &str = "\
        a.test. 60 IN SOA ns1.a.test. h.a.test. 1 2 3 4 5
        a.test. 60 IN NS ns1.a.test.
        a.test. 60 IN NS ns2.b.test.
        ns1.a.test. 60 IN A 127.0.0.1
        ns2.b.test. 60 IN AAAA ::1
        one.a.test. 60 IN CNAME two.a.test.
        two.a.test. 60 IN CNAME three.sub.a.test.
        three.sub.a.test. 60 IN TXT value
        big.a.test. 60 IN TXT long
        loop.a.test. 60 IN CNAME loop.a.test.
        sub.a.test. 60 IN SOA ns1.a.test. h.a.test. 1 2 3 4 5";

    fn records() -> Vec<Record> {
        let text: Vec<&str> = WORLD.lines().map(str::trim).collect();
        let origin = Some(Name::root());
        let parser = hickory_proto::serialize::txt::Parser::new(text.join("\n"), None, origin);
        let (_, sets) = parser.parse().unwrap();
        let records = sets.values().flat_map(|set| set.records_without_rrsigs());
        records.cloned().collect()
    }

    fn answer(question: &[u8], by_tcp: bool) -> Vec<u8> {
        let question = Message::from_vec(question).unwrap();
        let asked = question.queries[0].clone();
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.metadata.message_type = MessageType::Response;
        answer.add_query(asked.clone());
        if !by_tcp && asked.name().to_ascii().starts_with("big.") {
            answer.metadata.truncation = true;
        } else {
            let fits = |record: &Record| {
                record.name == *asked.name() && record.record_type() == asked.query_type()
            };
            for record in records().into_iter().filter(fits) {
                answer.add_answer(record);
            }
        }
        answer.to_vec().unwrap()
    }

    /// Answers at one port by UDP and by TCP.
    async fn serve() -> SocketAddr {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = tcp.local_addr().unwrap();
        let udp = Arc::new(UdpSocket::bind(addr).await.unwrap());
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                let bytes = answer(&buffer[..length], false);
                udp.send_to(&bytes, from).await.unwrap();
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let length = stream.read_u16().await.unwrap();
                let mut question = vec![0; length.into()];
                stream.read_exact(&mut question).await.unwrap();
                let bytes = answer(&question, true);
                stream
                    .write_u16(bytes.len().try_into().unwrap())
                    .await
                    .unwrap();
                stream.write_all(&bytes).await.unwrap();
            }
        });
        addr
    }

    async fn lookup() -> (Lookup, SocketAddr) {
        let addr = serve().await;
        let lookup = Lookup {
            resolvers: vec![addr],
            nameservers: Vec::new(),
            port: addr.port(),
        };
        (lookup, addr)
    }

    #[tokio::test]
    async fn aliases_are_followed_to_their_end() {
        let (lookup, _) = lookup().await;
        let end = lookup.behind_aliases("one.a.test").await.unwrap();
        assert_eq!(end, "three.sub.a.test");
        assert_eq!(lookup.behind_aliases("x.a.test").await.unwrap(), "x.a.test");
        let endless = lookup.behind_aliases("loop.a.test").await.unwrap_err();
        assert!(matches!(endless, DnsError::EndlessAlias(_)));
    }

    #[tokio::test]
    async fn the_zone_is_the_nearest_that_has_a_start_of_authority() {
        let (lookup, _) = lookup().await;
        for (name, zone) in [
            ("three.sub.a.test", "sub.a.test"),
            ("_acme-challenge.x.y.a.test", "a.test"),
            ("a.test", "a.test"),
        ] {
            assert_eq!(lookup.zone_of(name).await.unwrap(), zone);
        }
        let nowhere = lookup.zone_of("b.example").await.unwrap_err();
        assert!(matches!(nowhere, DnsError::NoZone { .. }), "{nowhere}");
    }

    #[tokio::test]
    async fn the_servers_of_a_zone_with_all_their_addresses() {
        let (lookup, addr) = lookup().await;
        let mut servers = lookup.servers_of("a.test").await.unwrap();
        servers.sort_by(|a, b| a.name.cmp(&b.name));
        let named = |name: &str, ip: &str| NameServer {
            name: name.to_owned(),
            addresses: vec![SocketAddr::new(ip.parse().unwrap(), addr.port())],
        };
        assert_eq!(
            servers,
            [named("ns1.a.test", "127.0.0.1"), named("ns2.b.test", "::1")]
        );
        let given = Lookup::new(Vec::new(), vec![addr]);
        assert_eq!(
            given.servers_of("a.test").await.unwrap()[0].addresses,
            [addr]
        );
    }

    #[tokio::test]
    async fn a_long_answer_is_asked_for_again_by_tcp() {
        let (lookup, addr) = lookup().await;
        let values = lookup.txt_at(addr, "three.sub.a.test").await.unwrap();
        assert_eq!(values, ["value"]);
        assert_eq!(lookup.txt_at(addr, "big.a.test").await.unwrap(), ["long"]);
        assert!(lookup.txt_at(addr, "none.a.test").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_resolver_that_is_not_there_is_named() {
        let lookup = Lookup::new(vec!["127.0.0.1:9".parse().unwrap()], Vec::new());
        let error = lookup.zone_of("a.test").await.unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:9"), "{error}");
    }

    #[test]
    fn the_systems_resolvers() {
        let text = "# c\nsearch a.test\nnameserver 192.0.2.1\n nameserver\t::1 # x\n\
                    nameserver fe80::1%eth0\noptions ndots:1\n";
        let found = system_resolvers(text);
        assert_eq!(
            found,
            ["192.0.2.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()]
        );
    }
}
