//! The tables that say how requests are spread over upstreams.

use super::Shape::{Duration, Either, Flag, List, Text, Whole, Words};
use super::{Section, Shape, key};

const STATUSES: Shape = List(&Either(&[
    Whole(100, 599),
    Text("a class such as `5xx`, or a range such as `200-204`"),
]));
const DURATION_OR_OFF: Shape = Either(&[Duration, Words(&["off"])]);

pub(in crate::config) const UPSTREAM: Section = Section {
    header: "a table of `upstreams`",
    id: "upstream",
    doc: "An upstream in its place among others. More in [upstreams.md](upstreams.md).",
    keys: &[
        key("to", Text("an upstream"), "", "Where it is. Required."),
        key(
            "weight",
            Whole(1, 100),
            "1",
            "How many requests it gets while one of weight 1 gets one.",
        ),
        key(
            "max_connections",
            Whole(1, 1_000_000),
            "",
            "How many requests it has at once, from this route; others wait (`pending`).",
        ),
    ],
};

pub(in crate::config) const LOAD_BALANCING: Section = Section {
    header: "[sites.load_balancing]",
    id: "load_balancing",
    doc: "Which upstream gets a request.",
    keys: &[
        key(
            "policy",
            Words(&[
                "round_robin",
                "least_connections",
                "random",
                "hash",
                "sticky",
            ]),
            r#""round_robin""#,
            "In turn; the one with the fewest requests; the better one of two that chance names; the same for the same key; the one that a cookie names.",
        ),
        key(
            "panic_threshold",
            Whole(0, 100),
            "50",
            "Per cent: where more of the upstreams are unhealthy, all that can be dialled are used.",
        ),
        key(
            "slow_start",
            DURATION_OR_OFF,
            r#""off""#,
            "How long the weight of an upstream that has come back grows.",
        ),
        key(
            "by",
            Text("`client`, `header.NAME` or `cookie.NAME`"),
            "",
            "What is hashed, with `hash`.",
        ),
        key(
            "cookie",
            Text("the name of a cookie"),
            "",
            "With `sticky`. Default: `upstream`",
        ),
        key("path", Text("a path"), "", "Of the cookie. Default: `/`"),
        key(
            "secure",
            Flag,
            "",
            "Of the cookie. Default: where the client has TLS",
        ),
        key(
            "same_site",
            Words(&["strict", "lax", "none"]),
            "",
            "Of the cookie. Default: `lax`",
        ),
        key(
            "max_age",
            Duration,
            "",
            "Of the cookie. Default: until the browser is closed",
        ),
        key(
            "secret",
            Text("a text, or `${NAME}`"),
            "",
            "Makes what the cookie says of an upstream a guess for everybody else.",
        ),
    ],
};

pub(in crate::config) const HEALTH_CHECK: Section = Section {
    header: "[sites.health_check]",
    id: "health_check",
    doc: "Upstreams are asked how they are. Without `path` it is enough that a connection opens.",
    keys: &[
        key("path", Text("a path"), "", "What is asked for, with GET."),
        key(
            "host",
            Text("a host"),
            "",
            "Whose. Default: as the upstream is called",
        ),
        key(
            "status",
            STATUSES,
            "",
            "What a good answer has. Default: `[\"2xx\"]`",
        ),
        key(
            "body",
            Text("a text"),
            "",
            "What is in the body of a good answer, in its first 64 KiB.",
        ),
        key("interval", Duration, r#""10s""#, "How long between two."),
        key("timeout", Duration, r#""2s""#, "How long one may take."),
        key(
            "rise",
            Whole(1, 1000),
            "2",
            "So many good answers in a row make an upstream healthy.",
        ),
        key(
            "fall",
            Whole(1, 1000),
            "3",
            "So many bad ones make it unhealthy; the very first is believed at once.",
        ),
    ],
};

pub(in crate::config) const EJECTION: Section = Section {
    header: "[sites.ejection]",
    id: "ejection",
    doc: "An upstream that fails requests gets none for a while. One that cannot be dialled is left alone at once.",
    keys: &[
        key("failures", Whole(1, 1000), "5", "So many in a row."),
        key(
            "statuses",
            STATUSES,
            "[]",
            "Responses that count as failures, beside broken ones.",
        ),
        key(
            "time",
            Duration,
            r#""10s""#,
            "For how long, the first time; twice as long whenever it fails again at once.",
        ),
        key("max_time", Duration, r#""5m""#, "For how long at most."),
    ],
};

pub(in crate::config) const RETRIES: Section = Section {
    header: "[sites.retries]",
    id: "retries",
    doc: "How many requests may be sent a second time, where that does no harm.",
    keys: &[
        key(
            "budget",
            Whole(0, 1000),
            "20",
            "Per cent of the requests of the last 10 s.",
        ),
        key(
            "min_per_second",
            Whole(0, 1_000_000),
            "10",
            "So many in any case.",
        ),
    ],
};

pub(in crate::config) const PENDING: Section = Section {
    header: "[sites.pending]",
    id: "pending",
    doc: "Requests that wait because every upstream has `max_connections`.",
    keys: &[
        key(
            "max",
            Whole(1, 1_000_000),
            "100",
            "So many; the next gets 503 with `Retry-After`.",
        ),
        key("timeout", Duration, r#""5s""#, "For so long; then, too."),
    ],
};

pub(in crate::config) const TIMEOUTS: Section = Section {
    header: "[sites.timeouts]",
    id: "timeouts",
    doc: "How long an upstream may take. WebSockets, server-sent events and gRPC may be silent as long as they like, unless `response_header` or `idle` is written out.",
    keys: &[
        key("dial", Duration, r#""3s""#, "For a connection, with TLS."),
        key(
            "response_header",
            DURATION_OR_OFF,
            "",
            "From the end of the request to the head of the response. Default: `60s`",
        ),
        key(
            "idle",
            DURATION_OR_OFF,
            "",
            "Without anything moving, while bodies do. Default: `60s`",
        ),
        key(
            "total",
            DURATION_OR_OFF,
            r#""off""#,
            "For everything, WebSockets excepted.",
        ),
        key(
            "ping",
            DURATION_OR_OFF,
            r#""30s""#,
            "Of silence on a connection of HTTP/2, before the upstream is asked whether it is there; and for its answer.",
        ),
    ],
};
