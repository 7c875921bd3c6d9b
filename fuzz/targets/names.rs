//! Looking a server name up: any bytes as a ClientHello has them, against a table of any names. The
//! answer has to be that of a slow and obvious reference, and every name has one canonical form.

#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use perennial::certificate::name::Name;
use perennial::certificate::table::{LiveCertificate, Table};
use perennial_fuzz::input::{byte, join, part};
use perennial_fuzz::reference::{self, Host, Row};
use perennial_fuzz::{choice, live, write_seeds};

static CERTIFICATES: LazyLock<Vec<Arc<LiveCertificate>>> =
    LazyLock::new(|| (0..8).map(|n| live(&format!("n{n}.test"))).collect());

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Bits before a name in the input.
const INVALID: u8 = 1;
const VANISHED: u8 = 2;
const DEFAULT: u8 = 4;
const REMOVED: u8 = 8;

fuzz_target!(init: write_seeds(seeds), |data: &[u8]| {
    let mut rest = data;
    let with_server_name = byte(&mut rest) & 1 == 0;
    let server_name = part(&mut rest);
    let (mut table, mut rows) = (Table::new(None), Vec::new());
    let mut default = None;
    while !rest.is_empty() {
        let bits = byte(&mut rest);
        let Ok(text) = std::str::from_utf8(part(&mut rest)) else {
            continue;
        };
        let Some(name) = check_name(text) else {
            continue;
        };
        if bits & DEFAULT != 0 {
            default = Some(name.clone());
            table.set_default(default.clone());
        }
        set(&mut table, &mut rows, &name, bits);
    }
    assert_eq!(table.len(), rows.len());
    // As BoringSSL's binding hands it on.
    let text = std::str::from_utf8(server_name).ok().filter(|_| with_server_name);
    let host = match text {
        Some(text) => reference::host(text),
        None => Some(Host::Address(LOCAL)),
    };
    let look_up = |host: &Host| reference::look_up(&rows, host);
    let expected = host.as_ref().and_then(look_up);
    let expected = expected.or_else(|| look_up(&reference::of_name(default.as_ref()?)));
    let found = table.select(text, LOCAL).map(|choice| {
        let same = |live: &Arc<LiveCertificate>| Arc::ptr_eq(live, &choice.best);
        CERTIFICATES.iter().position(same).unwrap()
    });
    assert_eq!(found, expected, "{text:?} of {rows:?}, default {default:?}");
});

/// Parses a name and compares it with the reference.
fn check_name(text: &str) -> Option<Name> {
    let parsed = text.parse::<Name>();
    if text.is_ascii() {
        let parsed = parsed.as_ref().ok().map(reference::of_name);
        assert_eq!(parsed, reference::name(text), "{text:?}");
    }
    let name = parsed.ok()?;
    let shown = name.to_string();
    assert_eq!(
        shown.parse().as_ref(),
        Ok(&name),
        "{text:?} is shown as another name"
    );
    assert_eq!(
        reference::name(&shown),
        Some(reference::of_name(&name)),
        "{text:?}"
    );
    assert!(name.is_wildcard() || name.covers(&name), "{text:?}");
    let directory = name.as_directory();
    assert!(
        !directory.contains(['/', ':', '*']) && !directory.starts_with('.'),
        "{directory}"
    );
    Some(name)
}

fn set(table: &mut Table, rows: &mut Vec<Row>, name: &Name, bits: u8) {
    let certificate = usize::from(bits >> 4) % CERTIFICATES.len();
    let standing = (bits & INVALID == 0, bits & VANISHED == 0);
    let row = Row {
        name: reference::of_name(name),
        standing,
        certificate,
    };
    rows.retain(|old| old.name != row.name);
    if bits & REMOVED != 0 {
        table.set(name, None);
        return;
    }
    let choice = choice(&CERTIFICATES[certificate], standing.0, standing.1);
    table.set(name, Some(choice));
    rows.push(row);
}

fn seeds() -> Vec<Vec<u8>> {
    let seed = |server_name: &str, names: &[(u8, &str)]| {
        let mut input = join(0, [server_name.as_bytes(), b""]);
        for (bits, name) in names {
            input.extend(join(*bits, [name.as_bytes(), b""]));
        }
        input
    };
    let a = [(0x10, "a.test"), (0x20, "*.test"), (0x30, "*.a.test")];
    let mixed = [
        (0x11, "a.test"),
        (0x22, "*.test"),
        (0x44, "127.0.0.1"),
        (0x50, "[::1]"),
    ];
    let odd = [
        (0x10, "bücher.example"),
        (0x24, "_x.B.test."),
        (0x38, "::ffff:1.2.3.4"),
    ];
    let mut seeds = Vec::new();
    for names in [&a[..], &mixed, &odd] {
        for server_name in [
            "a.test",
            "A.Test.",
            "b.a.test",
            "c.b.a.test",
            "127.0.0.1",
            "::1",
            ".test",
            "",
            "test",
            "xn--bcher-kva.example",
        ] {
            seeds.push(seed(server_name, names));
        }
    }
    seeds
}
