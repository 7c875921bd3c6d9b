//! `[[sites]]`, `[[sites.routes]]` and what is in them.

use super::Shape::{
    Duration, Either, Flag, Limit, List, Pairs, Path, Size, Table, Tables, Text, Whole, Words,
};
use super::{
    EJECTION, HEALTH_CHECK, Key, LOAD_BALANCING, NETWORKS, PENDING, RETRIES, Section, Shape,
    TAKEOVERS, TIMEOUTS, UPSTREAM, URL, key,
};

const TLS_MODES: Shape = Words(&["auto", "acme", "internal", "files", "off"]);
const UPSTREAMS: Shape = List(&Either(&[Text("an upstream"), Table(&UPSTREAM)]));

/// What a site has for all its routes, and a route for itself.
macro_rules! request_keys {
    ($upstream_tls:expr, $($more:expr),* $(,)?) => {
        &[
            $($more,)*
            key("request_headers", Table(&FIELD_RULES), "", "Changes to the fields that the upstream gets."),
            key("response_headers", Table(&FIELD_RULES), "", "Changes to the fields that the client gets."),
            key("allow", NETWORKS, "", "Who is let in; nobody else."),
            key("deny", NETWORKS, "", "Who is not."),
            key("rate_limit", Either(&[Limit, Table(&RATE_LIMIT)]), r#""off""#, "How many requests a client may send: so many at once, then evenly."),
            key("basic_auth", Either(&[Path, Table(&BASIC_AUTH)]), r#""off""#, "A file with a line `NAME:HASH` for each user who is let in."),
            key("forward_auth", Either(&[URL, Words(&["off"]), Table(&FORWARD_AUTH)]), r#""off""#, "A URL, or `unix:SOCKET:/PATH`, that says with 2xx who is let in; any other answer is the client's."),
            key("max_body", Size, r#""off""#, "How large a request's body may be."),
            key("upstreams", UPSTREAMS, "", "Where requests go: `host:port`, `3000`, `https://host:port`, `h2://host:port`, `h2c://host:port`, `unix:PATH`, `srv://NAME` (also `srv+https`, `srv+h2` and `srv+h2c`), or `respond:TEXT`."),
            key("redirect", Text("a URL or a path"), "", "Sends clients elsewhere, instead of `upstreams`. Can have placeholders."),
            key("respond", Text("a text"), "", "Answers by itself, instead of `upstreams`."),
            key("status", Whole(200, 599), "", "The status of `redirect` (default 302) or `respond` (default 200)."),
            key("proxy_protocol", Words(&["v1", "v2", "off"]), r#""off""#, "Whether connections to upstreams begin with a header of the PROXY protocol, which says who the client is. Each request has a connection of its own then."),
            key("root", Path, "", "A folder whose files are the answers, instead of `upstreams`."),
            key("index", List(&Text("a file name")), "", "What is served for a directory of `root`: the first of these that it has. Default: `[\"index.html\"]`"),
            key("fallback", Text("a path"), "", "The file below `root` that is served where there is none, for applications of one page."),
            key("follow_symlinks", Flag, "", "Whether symbolic links may lead out of `root`. Default: `false`"),
            key("dot_files", Flag, "", "Whether names below `root` that begin with a dot are served. `.well-known` always is. Default: `false`"),
            key("browse", Flag, "", "Whether what is in a directory of `root` without an index is listed, as a page or, with `Accept: application/json`, as JSON. Names that are not served are not there. Default: `false`"),
            key("precompressed", Flag, "", "Whether `FILE.br`, `FILE.zst` and `FILE.gz` are served for `FILE`, where they are not older. Default: `true`"),
            key("compress", Either(&[Flag, List(&Words(&["zstd", "br", "gzip"]))]), "false", "Whether bodies are compressed that are not, or in what, the best first."),
            key("upstream_tls", Table($upstream_tls), "", "TLS towards upstreams with `https://` or `h2://`."),
            key("load_balancing", Either(&[Words(&["round_robin", "least_connections", "random", "sticky"]), Table(&LOAD_BALANCING)]), r#""round_robin""#, "Which upstream gets a request."),
            key("health_check", Either(&[Words(&["tcp", "off"]), Table(&HEALTH_CHECK)]), r#""off""#, "Whether upstreams are asked how they are."),
            key("ejection", Either(&[Words(&["off"]), Table(&EJECTION)]), "", "Whether an upstream that fails requests gets none for a while."),
            key("retries", Either(&[Words(&["off"]), Table(&RETRIES)]), "", "How many requests may be sent a second time."),
            key("pending", Either(&[Words(&["off"]), Table(&PENDING)]), "", "How many requests may wait for an upstream that has as many as it may have, and how long."),
            key("timeouts", Table(&TIMEOUTS), "", "How long an upstream may take."),
        ]
    };
}

pub(in crate::config) const SITE: Section = Section {
    header: "[[sites]]",
    id: "site",
    doc: "What is served, for some names. More in [sites.md](sites.md).",
    keys: request_keys![
        &UPSTREAM_TLS,
        key(
            "hosts",
            List(&Text("a name, a wildcard, or an address")),
            "",
            "Whose requests these are. `\"*\"` is every name that no other site has: with `on_demand`, or with `tls` \"files\" or \"off\", and then every address as well. Required."
        ),
        key(
            "tls",
            TLS_MODES,
            r#""auto""#,
            "Where the certificate comes from; with `off` there is none, and the site is on `http_listen`."
        ),
        key(
            "listen",
            List(&Text("an address and a port, or `unix:PATH`")),
            "",
            "Addresses of its own. The site is served there and nowhere else, and nothing else is served there but sites that say the same. Plain HTTP with `tls = \"off\"`, else HTTPS."
        ),
        key(
            "on_demand",
            Flag,
            "false",
            "Whether certificates are ordered when a client asks for their name, and not before."
        ),
        key(
            "certificate_per",
            Words(&["host", "site"]),
            r#""host""#,
            "One certificate for each host, or one for all."
        ),
        key("client_auth", Table(&CLIENT_AUTH), "", "Mutual TLS."),
        key(
            "takeover",
            TAKEOVERS,
            "",
            "As in `[certificates]`, for this site alone."
        ),
        key(
            "hsts",
            Either(&[Duration, Table(&HSTS)]),
            "",
            "`Strict-Transport-Security`. Left out where the internal CA has issued."
        ),
        key(
            "security_headers",
            Flag,
            "false",
            "Whether `X-Content-Type-Options`, `X-Frame-Options` and `Referrer-Policy` are set where the upstream has said nothing about them."
        ),
        key(
            "error_pages",
            Pairs,
            "",
            "Pages of HTML in place of our own error texts, by `404`, `4xx` or `5xx`."
        ),
        key(
            "access_log",
            Either(&[Flag, Path]),
            "true",
            "Whether its requests are in the access log, or a file of its own for them, in the form of `[access_log]`."
        ),
        key("routes", Tables(&ROUTE), "", "What happens at some paths."),
    ],
};

pub(in crate::config) const ROUTE: Section = Section {
    header: "[[sites.routes]]",
    id: "route",
    doc: "What happens at some paths of a site. What a route does not say about access is as the site says.",
    keys: request_keys![
        &ROUTE_UPSTREAM_TLS,
        key(
            "path",
            Text("a path"),
            "",
            "`/api` is that path alone, `/api/*` everything below it, too, `/files/*.pdf` has a star within a segment. The most specific path wins. Required."
        ),
        key(
            "methods",
            List(&Text("a method")),
            "",
            "The methods that it is for; GET stands for HEAD, too. Default: any"
        ),
        key(
            "headers",
            Pairs,
            "",
            "Fields that a request has to have, with `*` for any text."
        ),
        key(
            "strip_prefix",
            Text("a path"),
            "",
            "Taken off the front of the path."
        ),
        key(
            "rewrite",
            Text("a path"),
            "",
            "The path that is asked for instead; `{path}` is what it was."
        ),
    ],
};

pub(in crate::config) const RATE_LIMIT: Section = Section {
    header: "[sites.rate_limit]",
    id: "rate_limit",
    doc: "How many requests may be sent.",
    keys: &[
        key(
            "limit",
            Limit,
            "",
            "So many at once, and so many again after so long. Required.",
        ),
        key(
            "by",
            Text("`client`, `everybody` or `header.NAME`"),
            r#""client""#,
            "Who is counted as one.",
        ),
    ],
};

pub(in crate::config) const BASIC_AUTH: Section = Section {
    header: "[sites.basic_auth]",
    id: "basic_auth",
    doc: "Who is let in by name and password.",
    keys: &[
        key(
            "users_file",
            Path,
            "",
            "A line `NAME:HASH` for each user, as `perennial hash-password` makes them. Required.",
        ),
        key(
            "realm",
            Text("a text"),
            r#""restricted""#,
            "What the browser shows.",
        ),
    ],
};

pub(in crate::config) const FORWARD_AUTH: Section = Section {
    header: "[sites.forward_auth]",
    id: "forward_auth",
    doc: "Who is let in by somebody else's word.",
    keys: &[
        key(
            "url",
            URL,
            "",
            "Asked with GET for each request, with the client's fields and `X-Forwarded-Method`, `-Uri`, `-Host`, `-Proto`, `-For`. Required.",
        ),
        key(
            "ca",
            Path,
            "",
            "A bundle of authorities that a URL with `https://` is trusted by, instead of the system's; read again when it changes.",
        ),
        key(
            "copy_headers",
            List(&Text("the name of a field")),
            "[]",
            "Fields of its answer that the request gets, in place of any that the client has sent.",
        ),
        key(
            "timeout",
            Duration,
            r#""5s""#,
            "How long it may take; then nobody is let in.",
        ),
    ],
};

pub(in crate::config) const FIELD_RULES: Section = Section {
    header: "[sites.request_headers] or [sites.response_headers]",
    id: "field_rules",
    doc: "Changes to fields, in this order. Values can have placeholders.",
    keys: &[
        key(
            "remove",
            List(&Text("the name of a field")),
            "",
            "These fields are removed.",
        ),
        key("set", Pairs, "", "Instead of all fields of that name."),
        key("add", Pairs, "", "Beside them."),
        key("default", Pairs, "", "Where there is none."),
    ],
};

pub(in crate::config) const HSTS: Section = Section {
    header: "[sites.hsts]",
    id: "hsts",
    doc: "`Strict-Transport-Security` (RFC 6797).",
    keys: &[
        key(
            "max_age",
            Duration,
            "",
            "How long browsers remember it. Required.",
        ),
        key(
            "include_subdomains",
            Flag,
            "false",
            "Whether it is for all names below as well.",
        ),
        key(
            "preload",
            Flag,
            "false",
            "Whether browsers may be shipped with it.",
        ),
    ],
};

pub(in crate::config) const CLIENT_AUTH: Section = Section {
    header: "[sites.client_auth]",
    id: "client_auth",
    doc: "Mutual TLS: clients have to show a certificate.",
    keys: &[
        key(
            "ca",
            Path,
            "",
            "The authorities that it has to come from. Required.",
        ),
        key(
            "crl",
            Path,
            "",
            "Revocation lists, PEM or DER; then every authority on the way to the root needs one.",
        ),
        key(
            "mode",
            Words(&["require", "request"]),
            r#""require""#,
            "Whether a client without a certificate is refused.",
        ),
    ],
};

pub(in crate::config) const UPSTREAM_TLS: Section = Section {
    header: "[sites.upstream_tls]",
    id: "upstream_tls",
    doc: UPSTREAM_TLS_DOC,
    keys: UPSTREAM_TLS_KEYS,
};
pub(in crate::config) const ROUTE_UPSTREAM_TLS: Section = Section {
    header: "[sites.routes.upstream_tls]",
    id: "route_upstream_tls",
    doc: UPSTREAM_TLS_DOC,
    keys: UPSTREAM_TLS_KEYS,
};
const UPSTREAM_TLS_DOC: &str = "TLS towards upstreams with `https://`.";
const UPSTREAM_TLS_KEYS: &[Key] = &[
    key(
        "ca",
        Path,
        "",
        "Whom to trust instead of the system's authorities.",
    ),
    key("certificate", Path, "", "A certificate to show."),
    key("private_key", Path, "", "Its key."),
    key(
        "server_name",
        Text("a host name"),
        "",
        "The name to ask for and to verify. Default: the upstream's host",
    ),
    key(
        "verify",
        Flag,
        "true",
        "Whether the upstream's certificate is verified.",
    ),
];
