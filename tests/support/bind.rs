//! BIND as an authoritative server of a test's own: its zones take updates signed by a key (RFC
//! 2136, RFC 8945). It follows aliases from one of them into another, as the resolver that a CA asks
//! does.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::net::UdpSocket;

use super::command::{self, Lines};
use super::pebble::Killed;
use super::place::Place;
use super::wait::{SOON, wait_until};

const KEY_NAME: &str = "perennial";
/// Of [`Bind::of_place`].
pub const ZONE: &str = "example.test";

/// One zone. Its records are lines of a zone file, with names relative to it.
pub struct Zone<'a> {
    pub name: &'a str,
    pub records: &'a str,
    /// Whether TXT records may be changed with the key.
    pub takes_updates: bool,
}

/// Killed when dropped.
pub struct Bind {
    pub addr: SocketAddr,
    /// Of the TSIG key, base64.
    pub secret: String,
    log: Lines,
    _child: Killed,
}

impl Bind {
    /// One zone, `example.test`, all names of which lead to the place, and which takes updates.
    pub async fn of_place(place: &Place) -> Bind {
        let records = format!("@ IN A {0}\n* IN A {0}", place.ip);
        let zone = Zone {
            name: ZONE,
            records: &records,
            takes_updates: true,
        };
        Bind::start(place, "bind", &[zone]).await
    }

    /// `folder`: another one for each of several in one place.
    pub async fn start(place: &Place, folder: &str, zones: &[Zone<'_>]) -> Bind {
        let program = command::find("named").expect("named: scripts/setup-test.sh installs BIND");
        let addr = free_address();
        let secret = STANDARD.encode(rand::random::<[u8; 32]>());
        let config = configure(place, folder, addr, &secret, zones);
        let mut child = Command::new(program)
            .args(["-g", "-c"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("named");
        let log = Lines::default();
        command::collect(child.stderr.take().expect("a pipe"), &log);
        let bind = Bind {
            addr,
            secret,
            log,
            _child: Killed(child),
        };
        wait_until(SOON, "BIND to answer", async || {
            let first = zones.first().expect("a zone");
            bind.ask(first.name, RecordType::SOA).await.ok()
        })
        .await;
        bind
    }

    /// The `[acme.dns]` table that writes here, and looks here and nowhere else.
    pub fn dns_table(&self) -> String {
        format!(
            "[acme.dns]\nprovider = \"rfc2136\"\nserver = \"{0}\"\nkey_name = \"{KEY_NAME}\"\nkey = \"{1}\"\nresolvers = [\"{0}\"]\nnameservers = [\"{0}\"]\n",
            self.addr, self.secret
        )
    }

    /// The values of the TXT records of `name`.
    pub async fn txt(&self, name: &str) -> Vec<String> {
        let answer = self.ask(name, RecordType::TXT).await.expect("an answer");
        let values = answer
            .answers
            .iter()
            .filter_map(|record| match &record.data {
                RData::TXT(txt) => Some(String::from_utf8(txt.txt_data.concat()).expect("ASCII")),
                _ => None,
            });
        values.collect()
    }

    pub async fn wait_until_empty(&self, name: &str) {
        let what = format!("the TXT records of {name} to be gone");
        wait_until(SOON, &what, async || {
            self.txt(name).await.is_empty().then_some(())
        })
        .await;
    }

    pub async fn wait_for_txt(&self, name: &str) -> String {
        let what = format!("a TXT record of {name}");
        wait_until(SOON, &what, async || self.txt(name).await.pop()).await
    }

    /// Changes a zone as nsupdate(1) says.
    pub async fn update(&self, change: &str) {
        let (ip, port) = (self.addr.ip(), self.addr.port());
        let script = format!(
            "server {ip} {port}\nkey hmac-sha256:{KEY_NAME} {}\n{change}\nsend\n",
            self.secret
        );
        let mut command = Command::new(command::find("nsupdate").expect("nsupdate"));
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), script).expect("a script");
        command.arg(file.path());
        command::run(command).await.assert_success();
    }

    /// Queries and updates, one line each.
    pub fn log(&self) -> Vec<String> {
        self.log.all()
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Result<Message, String> {
        let mut name: Name = name.parse().expect("a name");
        name.set_fqdn(true);
        let mut question = Message::query();
        question.add_query(Query::query(name, kind));
        let bytes = question.to_vec().map_err(|error| error.to_string())?;
        let socket = UdpSocket::bind((self.addr.ip(), 0)).await;
        let socket = socket.map_err(|error| error.to_string())?;
        let answer = async {
            socket.send_to(&bytes, self.addr).await?;
            let mut buffer = vec![0; 4096];
            let (length, _) = socket.recv_from(&mut buffer).await?;
            buffer.truncate(length);
            Ok::<_, std::io::Error>(buffer)
        };
        let answer = tokio::time::timeout(std::time::Duration::from_secs(2), answer).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let answer = answer.map_err(|error| error.to_string())?;
        Message::from_vec(&answer).map_err(|error| error.to_string())
    }
}

/// BIND listens on addresses that an interface has, which the place's own loopback address is not.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address")
}

fn configure(
    place: &Place,
    folder: &str,
    addr: SocketAddr,
    secret: &str,
    zones: &[Zone<'_>],
) -> std::path::PathBuf {
    let directory = place.path(folder);
    let mut text = format!(
        "options {{ directory \"{0}\"; pid-file none; session-keyfile none; recursion yes; \
         empty-zones-enable no; listen-on port {1} {{ {2}; }}; listen-on-v6 {{ none; }}; allow-query {{ any; }}; \
         notify no; dnssec-validation no; querylog yes; }};\n\
         controls {{ }};\n\
         key \"{KEY_NAME}\" {{ algorithm hmac-sha256; secret \"{secret}\"; }};\n",
        directory.display(),
        addr.port(),
        addr.ip(),
    );
    for zone in zones {
        let policy = match zone.takes_updates {
            true => format!("update-policy {{ grant {KEY_NAME} zonesub TXT A CNAME; }};"),
            false => String::new(),
        };
        let name = zone.name;
        text += &format!("zone \"{name}\" {{ type primary; file \"{name}.zone\"; {policy} }};\n");
        let ip = addr.ip();
        let content = format!(
            "$TTL 60\n@ IN SOA ns1 hostmaster 1 3600 600 86400 1\n@ IN NS ns1\nns1 IN A {ip}\n{}\n",
            zone.records
        );
        place.write(format!("{folder}/{name}.zone"), content);
    }
    place.write(format!("{folder}/named.conf"), text)
}
