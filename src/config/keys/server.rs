//! `[server]`, `[certificates]` and `[tls]`.

use super::Shape::{Duration, Flag, List, Path, Size, Tables, Text, Whole, Words};
use super::{NETWORKS, Section, Shape, TAKEOVERS, key};

const LISTEN: Shape = List(&Text("an address and a port, or `unix:PATH`"));

pub(in crate::config) const SERVER: Section = Section {
    header: "[server]",
    id: "server",
    doc: "The server itself: addresses, directories, logs.",
    keys: &[
        key(
            "http_listen",
            LISTEN,
            r#"["[::]:80"]"#,
            "Plain HTTP: ACME challenges, redirects to HTTPS, and sites with `tls = \"off\"`.",
        ),
        key(
            "https_listen",
            LISTEN,
            r#"["[::]:443"]"#,
            "HTTPS. Both take Unix sockets, too: `\"unix:PATH\"`.",
        ),
        key(
            "socket_mode",
            Text("a file mode in octal digits"),
            r#""0660""#,
            "The mode of these sockets' files. Read when a socket is made.",
        ),
        key(
            "socket_owner",
            Text("a user's name or number"),
            "",
            "Whose they are; by default whoever runs the server.",
        ),
        key(
            "socket_group",
            Text("a group's name or number"),
            "",
            "The group that they are for.",
        ),
        key(
            "admin_listen",
            Text("a loopback address, `unix:PATH` or `off`"),
            r#""127.0.0.1:2019""#,
            "The admin API. It has no authentication, so it is a loopback address, a Unix socket, or `\"off\"`.",
        ),
        key(
            "state_dir",
            Path,
            "",
            "Accounts, certificates and keys that Perennial gets itself. Default: `/var/lib/perennial`; for a user who cannot write there `$XDG_STATE_HOME/perennial`. Read at the start only.",
        ),
        key(
            "threads",
            Whole(0, 1024),
            "0",
            "Worker threads; 0 is one per core. Read at the start only.",
        ),
        key(
            "grace_period",
            Duration,
            r#""30s""#,
            "How long requests may take to finish when the server stops, or drops the address that they came in on.",
        ),
        key(
            "trusted_proxies",
            NETWORKS,
            "[]",
            "Proxies in front of this server, whose word about the client is believed.",
        ),
        key(
            "proxy_protocol_from",
            List(&Text("an address, a network, or `unix`")),
            "[]",
            "Proxies whose connections begin with a header of the PROXY protocol (version 1 or 2), which has to be there and says who the client is. `\"unix\"`: connections on Unix sockets.",
        ),
        key(
            "max_connections",
            Whole(0, 100_000_000),
            "",
            "Connections of clients at a time; more are closed at once. 0 is no limit. Default: half of the file descriptors that the process may have.",
        ),
        key(
            "max_connections_per_client",
            Whole(0, 100_000_000),
            "",
            "Of these, for one IPv4 address or IPv6 /64; trusted proxies have no such limit. 0 is no limit. Default: half of `max_connections`.",
        ),
        key(
            "min_request_rate",
            Size,
            r#""240B""#,
            "How much of a request's body has to come in a second, on average, once the client was waited for `min_rate_after`.",
        ),
        key(
            "min_response_rate",
            Size,
            r#""240B""#,
            "How much of a response has to be taken in a second, on average, once the client was waited for `min_rate_after`.",
        ),
        key(
            "min_rate_after",
            Duration,
            r#""20s""#,
            "How long a client may be waited for, all in all, before these rates are asked for.",
        ),
        key(
            "http1_idle_timeout",
            Duration,
            r#""60s""#,
            "How long a client's connection of HTTP/1.1 may wait for the next request; from 1s to 1d.",
        ),
        key(
            "http2_idle_timeout",
            Duration,
            r#""180s""#,
            "How long one of HTTP/2 may be without a request; from 1s to 1d.",
        ),
        key(
            "forwarded",
            Words(&["x-forwarded", "rfc7239", "both", "off"]),
            r#""x-forwarded""#,
            "How upstreams are told who asked.",
        ),
        key(
            "request_id",
            Text("the name of a field"),
            "",
            "A field with an identifier for each request: to the upstream, to the client, and in the access log.",
        ),
        key(
            "resolvers",
            List(&Text("the address of a DNS server")),
            "",
            "DNS servers that upstreams' names are asked of, instead of the system's. The file of hosts comes first.",
        ),
        key(
            "log_level",
            Words(&["error", "warn", "info", "debug", "trace"]),
            r#""info""#,
            "The least important events to log. `--log-level` and `RUST_LOG` win.",
        ),
    ],
};

pub(in crate::config) const CERTIFICATES: Section = Section {
    header: "[certificates]",
    id: "certificates",
    doc: "Certificates that somebody else renews: certbot, lego, acme.sh, cert-manager, Vault, you.",
    keys: &[
        key(
            "directories",
            List(&Path),
            "[]",
            "Drop folders, searched to a depth of 3. A certificate and its key are found by what is in the files.",
        ),
        key(
            "poll_interval",
            Duration,
            r#""5s""#,
            "How often files are looked at; from 100ms to 1d.",
        ),
        key(
            "watch",
            Flag,
            "true",
            "Whether file events make that quicker.",
        ),
        key(
            "default",
            Text("a host name"),
            "",
            "The name whose certificate clients get that send no name, or one that is not served here. Without it their handshake is refused.",
        ),
        key(
            "takeover",
            TAKEOVERS,
            r#""off""#,
            "Who issues where a certificate of these is overdue: past two thirds of its lifetime, and not replaced.",
        ),
        key(
            "files",
            Tables(&CERTIFICATE_FILES),
            "",
            "Pairs by their paths.",
        ),
    ],
};

pub(in crate::config) const CERTIFICATE_FILES: Section = Section {
    header: "[[certificates.files]]",
    id: "certificate_files",
    doc: "One pair by its paths: PEM in any order, DER, or PKCS#12.",
    keys: &[
        key(
            "certificate",
            Path,
            "",
            "The certificate, with its chain. Required.",
        ),
        key(
            "private_key",
            Path,
            "",
            "The key, where it is not in the certificate's file.",
        ),
        key(
            "password_file",
            Path,
            "",
            "A file whose first line opens an encrypted key or a PKCS#12 file.",
        ),
    ],
};

pub(in crate::config) const TLS: Section = Section {
    header: "[tls]",
    id: "tls",
    doc: "How TLS sessions are resumed, which spares returning clients half of the handshake.",
    keys: &[
        key(
            "session_ticket_key_files",
            List(&Path),
            "",
            "Keys that several servers share, 80 or 48 random bytes each. The first encrypts, all decrypt, and they are read again when they change.",
        ),
        key(
            "session_ticket_rotation",
            Duration,
            r#""12h""#,
            "How often the key in memory is replaced, from 1m to 7d. The two keys before it still decrypt.",
        ),
        key(
            "resume_after_swap",
            Flag,
            "true",
            "Whether a session may be resumed although the certificate it was made under has been replaced.",
        ),
    ],
};

pub(in crate::config) const ACCESS_LOG: Section = Section {
    header: "[access_log]",
    id: "access_log",
    doc: "Where the line of each request goes, and what is in it. More in [sites.md](sites.md#the-access-log).",
    keys: &[
        key(
            "output",
            Text("`stderr`, `stdout`, `off` or a path"),
            r#""stderr""#,
            "Where it goes. A file is opened anew when it was moved or removed, and at SIGHUP.",
        ),
        key(
            "format",
            Words(&["human", "json", "combined"]),
            "",
            "How a line looks. Default: like the rest of the log, by `--log-format`",
        ),
        key(
            "sample",
            Text("a share such as `1/10`"),
            r#""1/1""#,
            "Which share of the requests is logged. What fails always is.",
        ),
        key(
            "query",
            Flag,
            "false",
            "Whether queries are logged, without the values of parameters that are secret by their name.",
        ),
        key(
            "redact",
            List(&Text("a name")),
            "[]",
            "Further names of such parameters.",
        ),
    ],
};
