//! Broken configurations and the whole line of the diagnostic for each.

use super::*;

const SITE: &str = "[[sites]]\nhosts = [\"example.com\"]\nupstreams = [\"3000\"]\n";

/// What is found wrong, one line each, without the help.
fn lines(found: &Diagnostics) -> Vec<String> {
    let line = |diagnostic: &Diagnostic| format!("{}: {}", diagnostic.place, diagnostic.message);
    found.iter().map(line).collect()
}

/// Each case is a configuration and what is found, the only thing, after `dir/p.toml:`.
#[track_caller]
fn check(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let found = parse(text).expect_err(text);
        let expected = format!("dir/p.toml:{expected}");
        assert_eq!(lines(&found), [expected], "{text}");
    }
}

/// The same, for what stands before a good site.
#[track_caller]
fn check_before_site(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        check(&[(&format!("{text}\n{SITE}"), expected)]);
    }
}

/// The same, for one upstream.
#[track_caller]
fn check_upstream(cases: &[(&str, &str)]) {
    for (upstream, why) in cases {
        let text = format!("[[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"{upstream}\"]\n");
        let expected = format!("3:14: {upstream:?} is not an upstream: {why}");
        check(&[(&text, &expected)]);
    }
}

#[test]
fn text_that_is_no_toml() {
    check_before_site(&[
        ("[server", "1:8: invalid TOML: unclosed table, expected `]`"),
        (
            "[server]\nthreads = 1\nthreads = 2",
            "3:1: invalid TOML: duplicate key \"threads\"",
        ),
        (
            "[acme]\nemail = ops@example.com",
            "2:9: invalid TOML: string values must be quoted",
        ),
    ]);
}

#[test]
fn keys_that_are_not_known() {
    check_before_site(&[
        (
            "[server]\nhttps_liste = [\":1\"]",
            "2:1: unknown key `https_liste` in [server]",
        ),
        ("threads = 2", "1:1: unknown key `threads` at the top level"),
        (
            "[certificates]\nfolder = \"x\"",
            "2:1: unknown key `folder` in [certificates]",
        ),
        (
            "[[acme.fallback]]\ndirectory = \"https://b.test/\"\nfallback = 1",
            "3:1: unknown key `fallback` in [[acme.fallback]]",
        ),
    ]);
}

#[test]
fn unknown_keys_get_the_best_help() {
    let help = |text: &str| {
        let found = parse(text).unwrap_err();
        let mut unknown = found
            .iter()
            .filter(|d| d.message.starts_with("unknown key"));
        unknown.next().unwrap().help.clone().unwrap()
    };
    assert_eq!(help("[server]\nthread = 1"), "did you mean `threads`?");
    assert_eq!(help("[[sites]]\nhost = 1"), "did you mean `hosts`?");
    assert_eq!(
        help("[server]\nwatch = 1"),
        "`watch` belongs in [certificates]"
    );
    assert_eq!(
        help("[[certificates.files]]\ncert = 1"),
        "did you mean `certificate`?"
    );
    assert_eq!(
        help("[[sites]]\n[[sites.routes]]\nx = 1"),
        "known here: path, methods, headers, strip_prefix, rewrite, request_headers, \
         response_headers, allow, deny, rate_limit, basic_auth, forward_auth, max_body, upstreams, redirect, respond, status, proxy_protocol, root, index, fallback, follow_symlinks, dot_files, browse, precompressed, compress, upstream_tls, \
         load_balancing, health_check, ejection, retries, pending, timeouts"
    );
}

#[test]
fn values_of_a_wrong_type() {
    check_before_site(&[
        (
            "[server]\nthreads = 1.5",
            "2:11: `threads` must be a whole number, not a decimal number",
        ),
        (
            "[server]\ngrace_period = 30",
            "2:16: `grace_period` must be a duration in quotes, not a whole number",
        ),
        (
            "[server]\nhttp_listen = \":80\"",
            "2:15: `http_listen` must be an array of listen addresses, not a string",
        ),
        (
            "[server]\nhttp_listen = [8080]",
            "2:16: an element of `http_listen` must be a string, not a whole number",
        ),
        (
            "[certificates]\nwatch = \"yes\"",
            "2:9: `watch` must be true or false, not a string",
        ),
        (
            "[certificates]\ndefault = 2026-01-01",
            "2:11: `default` must be a host name in quotes, not a date or time",
        ),
        (
            "server = 5",
            "1:10: `server` must be a table, not a whole number",
        ),
        ("acme = [1]", "1:8: `acme` must be a table, not an array"),
        (
            "[certificates.files]\ncertificate = \"x\"",
            "1:1: `files` must be an array of tables, not a table",
        ),
        (
            "[server]\nthreads = 99999999999999999999999999999999999999999",
            "2:11: `threads` is far too large",
        ),
    ]);
}

#[test]
fn numbers_and_durations() {
    check_before_site(&[
        ("[server]\nthreads = -1", "2:11: -1 is no number of threads"),
        (
            "[server]\nthreads = 4096",
            "2:11: 4096 is no number of threads",
        ),
        (
            "[server]\ngrace_period = \"30\"",
            "2:16: \"30\" is not a duration: it has no unit",
        ),
        (
            "[server]\ngrace_period = \"-5s\"",
            "2:16: \"-5s\" is not a duration: it does not begin with a number",
        ),
        (
            "[server]\ngrace_period = \"1h30m\"",
            "2:16: \"1h30m\" is not a duration: \"h30m\" is no unit",
        ),
        (
            "[server]\ngrace_period = \"99999999999999999d\"",
            "2:16: \"99999999999999999d\" is not a duration: it is far too long",
        ),
        (
            "[server]\ngrace_period = \"8d\"",
            "2:16: \"8d\" is out of bounds",
        ),
        (
            "[certificates]\npoll_interval = \"0s\"",
            "2:17: \"0s\" is out of bounds",
        ),
        (
            "[certificates]\npoll_interval = \"99ms\"",
            "2:17: \"99ms\" is out of bounds",
        ),
    ]);
}

#[test]
fn listen_addresses() {
    check_before_site(&[
        (
            "[server]\nhttp_listen = [\":8080\", \"localhost:80\"]",
            "2:25: \"localhost:80\" is not a listen address: \"localhost\" is no IP address",
        ),
        (
            "[server]\nhttp_listen = [\"8080\"]",
            "2:16: \"8080\" is not a listen address: it has no address",
        ),
        (
            "[server]\nhttp_listen = [\"[::1]\"]",
            "2:16: \"[::1]\" is not a listen address: it has no port",
        ),
        (
            "[server]\nhttp_listen = [\":99999\"]",
            "2:16: \":99999\" is not a listen address: \"99999\" is no port",
        ),
        (
            "[server]\nhttp_listen = [\"*:80\"]",
            "2:16: \"*:80\" is not a listen address: `*` is no address",
        ),
        (
            "[server]\nadmin_listen = \":2019\"",
            "2:16: \":2019\" is not a loopback address, and the admin API has no authentication",
        ),
        (
            "[server]\nadmin_listen = \"192.0.2.1:2019\"",
            "2:16: \"192.0.2.1:2019\" is not a loopback address, and the admin API has no \
             authentication",
        ),
    ]);
}

#[test]
fn listen_addresses_that_overlap() {
    check_before_site(&[
        (
            "[server]\nhttp_listen = [\"[::]:443\"]",
            "2:16: `http_listen` \"[::]:443\" overlaps `https_listen` \"[::]:443\" (its default)",
        ),
        (
            "[server]\nhttp_listen = [\":81\", \"127.0.0.1:81\"]",
            "2:23: `http_listen` \"127.0.0.1:81\" overlaps `http_listen` \"[::]:81\" (line 2)",
        ),
        (
            "[server]\nhttps_listen = [\"[::1]:9\"]\nadmin_listen = \"[::1]:9\"",
            "3:16: `admin_listen` \"[::1]:9\" overlaps `https_listen` \"[::1]:9\" (line 2)",
        ),
        (
            "[server]\nhttp_listen = [\":2019\"]",
            "2:16: `http_listen` \"[::]:2019\" overlaps `admin_listen` \"127.0.0.1:2019\" (its \
             default)",
        ),
    ]);
}

#[test]
fn listeners_that_sites_need() {
    check_before_site(&[
        (
            "[server]\nhttps_listen = []",
            "2:16: `https_listen` is empty, but there are sites that need HTTPS",
        ),
        (
            "[server]\nhttp_listen = []\n[acme]\nchallenges = [\"http-01\"]",
            "2:15: `http_listen` is empty, but http-01 is the only challenge",
        ),
    ]);
    check(&[(
        "[server]\nhttp_listen = []\n[[sites]]\nhosts = [\"a.test\"]\ntls = \"off\"\nupstreams = \
         [\"1\"]",
        "2:15: `http_listen` is empty, but there are sites with tls = \"off\"",
    )]);
}

#[test]
fn paths() {
    check_before_site(&[
        ("[server]\nstate_dir = \"\"", "2:13: the path is empty"),
        (
            "[server]\nstate_dir = \"~/state\"",
            "2:13: \"~/state\" begins with `~`, which only a shell expands",
        ),
        (
            "[certificates]\ndirectories = [\"a\", \"./a\"]",
            "2:21: the directory dir/a is already listed (line 2)",
        ),
        (
            "[[certificates.files]]\ncertificate = \"a.pem\"\n[[certificates.files]]\ncertificate \
             = \"a.pem\"\nprivate_key = \"b.key\"",
            "4:15: the certificate dir/a.pem is already listed (line 2)",
        ),
        (
            "[[certificates.files]]\nprivate_key = \"b.key\"",
            "1:1: [[certificates.files]] has no `certificate`",
        ),
        (
            "[certificates]\ndefault = \"a b\"",
            "2:11: host \"a b\" has the character ' ', which no host name can have",
        ),
    ]);
}

#[test]
fn log_levels() {
    check_before_site(&[
        (
            "[server]\nlog_level = \"warning\"",
            "2:13: \"warning\" is no log level",
        ),
        (
            "[server]\nlog_level = 3",
            "2:13: `log_level` must be a log level in quotes, not a whole number",
        ),
    ]);
}

#[test]
fn dns_providers() {
    let exec = "provider = \"exec\"\nprogram = \"hook\"";
    let for_b = format!("[[acme.dns.providers]]\ndomains = [\"b.test\"]\n{exec}");
    let acme_dns = "[acme.dns]\nprovider = \"acme-dns\"";
    let key = "key_name = \"k\"\nkey = \"c2VjcmV0\"";
    for (text, expected) in [
        (
            format!("[[acme.dns.providers]]\n{exec}"),
            "1:1: [[acme.dns.providers]] has no `domains`",
        ),
        (
            format!("[[acme.dns.providers]]\ndomains = []\n{exec}"),
            "2:11: `domains` is empty, so the provider would write nothing",
        ),
        (
            format!("[[acme.dns.providers]]\ndomains = [\"*.b.test\"]\n{exec}"),
            "2:12: \"*.b.test\" is a wildcard, and `domains` lists domains",
        ),
        (
            format!("{for_b}\n{for_b}"),
            "6:12: the domain b.test has a provider already",
        ),
        (
            "[[acme.dns.providers]]\ndomains = [\"b.test\"]".to_owned(),
            "1:1: [[acme.dns.providers]] has no `provider`",
        ),
        (
            "[[acme.dns.providers]]\ndomains = [\"b.test\"]\nprovider = \"duckdns\"".to_owned(),
            "1:1: the DNS provider \"duckdns\" needs `token`",
        ),
        (
            format!("[acme]\nchallenges = [\"dns-01\"]\n{for_b}"),
            "8:10: a certificate for example.com needs dns-01, and no DNS provider is for example.com",
        ),
        (
            format!("[acme.dns]\nprovider = \"rfc2136\"\nserver = \"ns 1\"\n{key}"),
            "3:10: the DNS provider \"rfc2136\" cannot be used: `server` \"ns 1\" is neither a name nor an IP address, as in \"ns1.example.com\", \"192.0.2.1:53\" or \"tcp://[2001:db8::1]:53\"",
        ),
        (
            format!("{acme_dns}\nserver = \"https://auth.test\"\npassword = \"p\""),
            "1:1: the DNS provider \"acme-dns\" needs `username`",
        ),
        (
            format!("{acme_dns}\naccounts = \"[]\""),
            "1:1: the acme-dns accounts are not what its clients write (line 1, column 0)",
        ),
        (
            format!("{acme_dns}\naccounts = \"{{}}\""),
            "1:1: the file with the acme-dns accounts has none",
        ),
    ] {
        let expected = expected.to_owned();
        check_before_site(&[(&text, &expected)]);
    }
    let accounts = r#"accounts = '{"b.test": {"username": "u", "password": "p", "subdomain": "s", "server_url": "https://auth.test"}}'"#;
    check(&[(
        &format!(
            "{acme_dns}\n{accounts}\n[[sites]]\nhosts = [\"x.b.test\", \"*.c.test\"]\nupstreams = [\"3000\"]\n"
        ),
        "5:22: a certificate for *.c.test needs dns-01, and the DNS provider \"acme-dns\" has no account for c.test",
    )]);
}

#[test]
fn authorities() {
    check_before_site(&[
        (
            "[acme]\nchallenges = [\"tls-alpn-01\", \"dns-01\"]",
            "2:30: the challenge dns-01 needs a DNS provider",
        ),
        (
            "[acme]\nchallenges = [\"http-1\"]",
            "2:15: \"http-1\" is no challenge",
        ),
        (
            "[acme]\nchallenges = [\"http-01\", \"http-01\"]",
            "2:26: this challenge is already listed",
        ),
        (
            "[acme]\nkey_type = \"P-256\"",
            "2:12: \"P-256\" is no key type",
        ),
        ("[acme]\nprofile = \"\"", "2:11: the profile is empty"),
        (
            "[acme]\nemail = \"ops@\"",
            "2:9: \"ops@\" is not an e-mail address",
        ),
        (
            "[acme]\nemail = \"mailto:a@b.test\"",
            "2:9: \"mailto:a@b.test\" is a URL, not an e-mail address",
        ),
        (
            "[acme]\ndirectory = \"acme.test/dir\"",
            "2:13: \"acme.test/dir\" is not an ACME directory URL: it is not a URL",
        ),
        (
            "[acme]\ndirectory = \"http://10.0.0.1/dir\"",
            "2:13: \"http://10.0.0.1/dir\" is not an ACME directory URL: plain http is for a CA \
             on this host alone",
        ),
        (
            "[[acme.fallback]]\nemail = \"a@b.test\"",
            "1:1: [[acme.fallback]] has no `directory`",
        ),
        (
            "[[acme.fallback]]\ndirectory = \"https://acme-v02.api.letsencrypt.org/directory\"",
            "2:13: the directory \"https://acme-v02.api.letsencrypt.org/directory\" is already in \
             use (the default of [acme])",
        ),
    ]);
}

#[test]
fn external_accounts() {
    const HEADER: &str = "[acme.external_account]\n";
    for (text, expected) in [
        (
            "kid = \"k\"",
            "1:1: [acme.external_account] has no HMAC key",
        ),
        (
            "hmac_key = \"AAAA\"",
            "1:1: [acme.external_account] has no `kid`",
        ),
        (
            "kid = \"k\"\nhmac_key = \"AAAA\"\nhmac_key_file = \"k\"",
            "4:17: `hmac_key` and `hmac_key_file` are both set",
        ),
        (
            "kid = \"k\"\nhmac_key = \"a+b/\"",
            "3:12: the HMAC key is not base64url",
        ),
        (
            "kid = \"k\"\nhmac_key = \"${NOT_SET}\"",
            "3:12: the environment variable NOT_SET, which `hmac_key` names, is not set",
        ),
        (
            "kid = \"k\"\nhmac_key_file = \"missing\"",
            "3:17: cannot read dir/missing: entity not found",
        ),
    ] {
        check_before_site(&[(&format!("{HEADER}{text}"), expected)]);
    }
}

#[test]
fn no_message_shows_a_secret() {
    for value in ["c2VjcmV0+", "\"c2VjcmV0+\"", "[\"c2VjcmV0+\"]"] {
        let text = format!("[acme.external_account]\nkid = \"k\"\nhmac_key = {value}\n{SITE}");
        let found = parse(&text).unwrap_err();
        assert!(!found.to_string().contains("c2VjcmV0"), "{found}");
        assert!(!format!("{found:?}").contains("c2VjcmV0"), "{found:?}");
    }
}

#[test]
fn sites() {
    check(&[
        ("", "1:1: there is no site, so there is nothing to serve"),
        (
            "sites = []",
            "1:9: there is no site, so there is nothing to serve",
        ),
        (
            "[[sites]]\nhosts = []\nupstreams = [\"1\"]",
            "2:9: `hosts` is empty",
        ),
        (
            "[[sites]]\nhosts = [\"a.test\"]\nupstreams = []",
            "3:13: `upstreams` is empty, so requests could go nowhere",
        ),
        (
            "[[sites]]\nhosts = [\"a.test\"]\nroutes = []",
            "1:1: [[sites]] has neither `upstreams` nor routes",
        ),
        (
            "[[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"1\"]\ntls = \"on\"",
            "4:7: \"on\" is no TLS mode",
        ),
        (
            "[[sites]]\nhosts = [\"*.a.test\"]\nupstreams = [\"1\"]\ntls = \"acmee\"",
            "4:7: \"acmee\" is no TLS mode",
        ),
        (
            "[[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"1\"]\ncertificate_per = \"name\"",
            "4:19: \"name\" is no unit of certificates",
        ),
        (
            "[[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"1\"]\ntakeover = \"internal\"",
            "4:12: `takeover` is set, but the certificate of this site never comes from files",
        ),
        (
            "[certificates]\ndirectories = [\"d\"]\n\
             [[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"1\"]\ntakeover = \"acme\"\ntls = \"acme\"",
            "6:12: `takeover` is set, but the certificate of this site never comes from files",
        ),
        (
            "[certificates]\ntakeover = \"acme\"\n[[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"1\"]",
            "2:12: `takeover` is set, but no certificate files are configured",
        ),
        (
            "[certificates]\ntakeover = \"acme\"\ndirectories = [\"d\"]\n\
             [[sites]]\nhosts = [\"*.a.test\"]\nupstreams = [\"1\"]",
            "5:10: takeover = \"acme\" cannot have a certificate for the wildcard *.a.test, which \
             needs the challenge dns-01",
        ),
        (
            "[certificates]\ntakeover = \"Acme\"\ndirectories = [\"d\"]\n\
             [[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"1\"]",
            "2:12: \"Acme\" is no takeover",
        ),
        (
            "[[sites]]\nhosts = [\"*.*.test\"]\nupstreams = [\"1\"]",
            "2:10: host \"*.*.test\" has a `*` elsewhere than as its whole first label, before a \
             name of at least one label",
        ),
        (
            "[[sites]]\nhosts = [\"*.example.com\"]\ntls = \"acme\"\nupstreams = [\"1\"]",
            "2:10: a certificate for the wildcard *.example.com needs the challenge dns-01, which \
             is not configured",
        ),
        (
            "[[sites]]\nhosts = [\"a.test\"]\ntls = \"files\"\nupstreams = [\"1\"]",
            "3:7: tls = \"files\", but no certificate files are configured",
        ),
    ]);
}

#[test]
fn routes() {
    let check = |routes: &str, expected: &str| {
        check(&[(
            &format!("[[sites]]\nhosts = [\"a.test\"]\n{routes}"),
            expected,
        )]);
    };
    check(
        "[[sites.routes]]\npath = \"/a*\"\nupstreams = [\"1\"]",
        "4:8: path \"/a*\" has a `*` that does not follow a `/`",
    );
    check(
        "[[sites.routes]]\npath = \"/a?b\"\nupstreams = [\"1\"]",
        "4:8: path \"/a?b\" has the character '?', which no request path can have",
    );
    check(
        "[[sites.routes]]\npath = \"\"\nupstreams = [\"1\"]",
        "4:8: path \"\" does not begin with `/`",
    );
    check(
        "[[sites.routes]]\nupstreams = [\"1\"]",
        "3:1: [[sites.routes]] has no `path`",
    );
    check(
        "routes = [{ path = \"/\", upstreams = [\"1\"] }, { path = \"/\", upstreams = [\"2\"] }]",
        "3:55: this site already has a route for this path (line 3)",
    );
    check(
        "upstreams = [\"1\"]\n[[sites.routes]]\npath = \"/*\"\nupstreams = [\"1\"]",
        "5:8: the route \"/*\" and the `upstreams` of the site mean the same requests",
    );
    for (route, expected) in [
        (
            "respond = \"a\"\nredirect = \"/b\"",
            "5:11: `redirect` and `respond` are both set",
        ),
        (
            "redirect = \"/b\"\nstatus = 200",
            "6:10: status 200 does not fit here",
        ),
        (
            "upstreams = [\"1\"]\nstatus = 200",
            "6:10: status 200 does not fit here",
        ),
        (
            "redirect = \"{uri}\"",
            "5:12: \"{uri}\" is no place to redirect to",
        ),
        ("redirect = \"/{pth}\"", "5:12: {pth} is no placeholder"),
        (
            "redirect = \"/{path\"",
            "5:12: \"/{path\" has a brace without its other half",
        ),
        (
            "upstreams = [\"1\"]\nmethods = [\"get\"]",
            "6:12: method \"get\" is not in capitals",
        ),
        (
            "upstreams = [\"1\"]\nstrip_prefix = \"/c\"",
            "6:16: paths of this route do not begin with \"/c\", so there is nothing to strip",
        ),
        (
            "upstreams = [\"1\"]\nrewrite = \"/a?{path}\"",
            "6:11: \"/a?{path}\" is no path to ask for",
        ),
        (
            "upstreams = [\"1\"]\nrequest_headers.set.Connection = \"x\"",
            "6:21: the field Connection is about the connection, and not to be changed",
        ),
        (
            "upstreams = [\"1\"]\nrequest_headers.remove = [\"Host\"]",
            "6:27: a request has one Host, no more and no less",
        ),
        (
            "upstreams = [\"1\"]\nresponse_headers.add.\"a b\" = \"x\"",
            "6:22: \"a b\" is no name of a field",
        ),
    ] {
        check(
            &format!("[[sites.routes]]\npath = \"/a/*\"\n{route}"),
            expected,
        );
    }
    check(
        "upstreams = [\"1\"]\nerror_pages = { 200 = \"a.html\" }",
        "4:23: \"200\" is no status of an error",
    );
    check(
        "upstreams = [\"1\"]\nerror_pages = { 404 = \"a.html\" }",
        "4:23: cannot read dir/a.html: entity not found",
    );
    check(
        "upstreams = [\"1\"]\nhsts = \"9999d\"",
        "4:8: \"9999d\" is out of bounds",
    );
}

#[test]
fn who_asked() {
    for (line, expected) in [
        (
            "trusted_proxies = [\"10.0.0.0/40\"]",
            "2:20: \"10.0.0.0/40\" is no network of addresses",
        ),
        (
            "forwarded = \"rfc\"",
            "2:13: \"rfc\" is no way to say who asked",
        ),
        (
            "request_id = \"X Request\"",
            "2:14: \"X Request\" is no name of a field",
        ),
    ] {
        let text =
            format!("[server]\n{line}\n[[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"1\"]\n");
        check(&[(&text, expected)]);
    }
}

#[test]
fn upstreams() {
    check_upstream(&[
        ("", "it is empty"),
        ("0", "\"0\" is no port"),
        ("70000", "\"70000\" is no port"),
        ("localhost", "it has no port"),
        ("localhost:+80", "\"+80\" is no port"),
        ("localhost:80/app", "it has a path"),
        ("https://a.test/app", "it has a path"),
        ("https://user@a.test", "it has a user name"),
        ("https://", "its host \"\" is empty"),
        ("ftp://a.test", "\"ftp\" is no known scheme"),
        ("::1:3000", "an IPv6 address and its port run together"),
        ("*.a.test:80", "its host is a wildcard"),
        (
            "a b:80",
            "its host \"a b\" has the character ' ', which no host name can have",
        ),
        ("respond:", "it has no text"),
    ]);
}

#[test]
fn everything_is_found_at_once_and_in_the_order_of_the_text() {
    let found = parse(
        "[server]\nthreads = -1\ngrace = \"5s\"\n[[sites]]\nhosts = [\"ä b\", \"a.test\", 7]\n\
         [acme]\nemail = 5\n",
    )
    .unwrap_err();
    assert_eq!(
        lines(&found),
        [
            "dir/p.toml:2:11: -1 is no number of threads",
            "dir/p.toml:3:1: unknown key `grace` in [server]",
            "dir/p.toml:4:1: [[sites]] has neither `upstreams` nor routes",
            "dir/p.toml:5:10: host \"ä b\" has the character ' ', which no host name can have",
            "dir/p.toml:5:27: an element of `hosts` must be a string, not a whole number",
            "dir/p.toml:7:9: `email` must be an e-mail address in quotes, not a whole number",
        ]
    );
    assert!(found.to_string().contains(
        "dir/p.toml:3:1: unknown key `grace` in [server]\n  help: did you mean \
         `grace_period`?\ndir/p.toml:4:1: "
    ));
}

#[test]
fn the_command_line() {
    let from = |arguments: CommandLine| {
        lines(&Config::from_arguments(arguments, &environment()).unwrap_err())
    };
    let sites = |sites: &[&str]| CommandLine {
        sites: sites.iter().map(|s| (*s).to_owned()).collect(),
        ..CommandLine::default()
    };
    assert_eq!(
        from(sites(&[])),
        ["command line: SITE=UPSTREAM: there is no site, so there is nothing to serve"]
    );
    assert_eq!(
        from(sites(&[
            "3000",
            "a.test=x",
            "a b=1",
            "a.test/x*=1",
            "*.b.test=1"
        ])),
        [
            "command line: 3000: this has no `=`",
            "command line: a.test=x: \"x\" is not an upstream: it has no port",
            "command line: a b=1: host \"a b\" has the character ' ', which no host name can have",
            "command line: a.test/x*=1: path \"/x*\" has a `*` that does not follow a `/`",
            "command line: *.b.test=1: a certificate for the wildcard *.b.test needs the \
             challenge dns-01, which is not configured",
        ]
    );
    let word = Config::from_arguments(sites(&["a.test=www"]), &environment()).unwrap_err();
    assert!(
        word.to_string()
            .contains("help: write www:3000, or https://www; for a folder ./www"),
        "{word}"
    );
    assert_eq!(
        from(CommandLine {
            http_listen: vec!["127.0.0.1:443".into()],
            admin_listen: Some("0.0.0.0:1".into()),
            email: Some("x".into()),
            acme_directory: Some("http://ca.test".into()),
            ..sites(&["a.test=1"])
        }),
        [
            "command line: --admin-listen 0.0.0.0:1: \"0.0.0.0:1\" is not a loopback address, and \
             the admin API has no authentication",
            "command line: --email x: \"x\" is not an e-mail address",
            "command line: --acme-directory http://ca.test: \"http://ca.test\" is not an ACME \
             directory URL: plain http is for a CA on this host alone",
            "command line: --http-listen 127.0.0.1:443: `http_listen` \"127.0.0.1:443\" overlaps \
             `https_listen` \"[::]:443\" (its default)",
        ]
    );
}

/// A file that an editor has half written must give diagnostics, never a panic.
#[test]
fn every_beginning_of_a_good_file_is_taken() {
    let text = include_str!("../../../config/perennial.toml");
    for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
        let _ = parse(&text[..end]);
    }
}

#[test]
fn on_demand_without_somebody_who_says_yes() {
    const ON_DEMAND: &str = "[[sites]]\nhosts = [\"*\"]\nupstreams = [\"1\"]\non_demand = true\n";
    let both = |table: &str| format!("{table}\n{ON_DEMAND}");
    check(&[
        (
            ON_DEMAND,
            "4:13: `on_demand` is set, but there is no [acme.on_demand]",
        ),
        (
            &both("[acme.on_demand]\nwait = \"5s\""),
            "1:1: [acme.on_demand] has neither `ask` nor `allow`, so anybody could have \
             certificates ordered",
        ),
        (
            &both("[acme.on_demand]\nask = \"http://h/\"\nallow = [\"a.test\"]"),
            "1:1: [acme.on_demand] has both `ask` and `allow`",
        ),
        (
            &both("[acme.on_demand]\nallow = []"),
            "2:9: `allow` is empty, so no name could be had",
        ),
        (
            &both("[acme.on_demand]\nallow = [\"*.a.test\"]"),
            "2:10: \"*.a.test\" is a wildcard, and `allow` lists domains",
        ),
        (
            &both("[acme.on_demand]\nallow = [\"10.0.0.1\"]"),
            "2:10: \"10.0.0.1\" is an address, and `allow` lists domains",
        ),
        (
            &both("[acme.on_demand]\nallow = [\"a.test\"]\nask_timeout = \"1s\""),
            "3:15: `ask_timeout` is set, but nobody is asked",
        ),
        (
            &both("[acme.on_demand]\nask = \"ftp://h/\""),
            "2:7: \"ftp://h/\" cannot be asked for permission: it does not begin with http:// or \
             https://",
        ),
        (
            &both("[acme.on_demand]\nallow = [\"a.test\"]\nmax_loaded = 0"),
            "3:14: `max_loaded` cannot be 0",
        ),
        (
            &both("[acme.on_demand]\nallow = [\"a.test\"]\nbudgets = { total = \"5\" }"),
            "3:21: \"5\" is not a limit",
        ),
        (
            &both("[acme.on_demand]\nallow = [\"a.test\"]\nbudgets = { totals = \"5/1h\" }"),
            "3:13: unknown key `totals` in [acme.on_demand.budgets]",
        ),
    ]);
    check_before_site(&[(
        "[acme.on_demand]\nallow = [\"a.test\"]",
        "1:1: [acme.on_demand] is set, but no site has `on_demand`",
    )]);
}

#[test]
fn sites_that_cannot_be_on_demand() {
    let site = |hosts: &str, rest: &str| {
        format!(
            "[acme.on_demand]\nallow = [\"a.test\"]\n[[sites]]\nhosts = [\"b.test\"]\n\
             upstreams = [\"1\"]\non_demand = true\n[[sites]]\nhosts = [{hosts}]\n\
             upstreams = [\"1\"]\n{rest}\n"
        )
    };
    for (hosts, rest, expected) in [
        (
            "\"*\"",
            "",
            "8:10: the host * is every name, and none can be ordered ahead",
        ),
        (
            "\"c.test\"",
            "on_demand = true\ntls = \"internal\"",
            "10:13: `on_demand` is set, but nothing is ordered for this site",
        ),
        (
            "\"c.test\"",
            "on_demand = true\ncertificate_per = \"site\"",
            "10:13: `on_demand` and certificate_per = \"site\" contradict each other: each name \
             is ordered when it is asked for",
        ),
        (
            "\"192.0.2.1\"",
            "on_demand = true",
            "8:10: 192.0.2.1 is an address, and only names can be had on demand",
        ),
        (
            "\"*.home.arpa\"",
            "on_demand = true",
            "8:10: *.home.arpa is private: the default for it is the internal CA, which needs no \
             demand",
        ),
        (
            "\"*\"",
            "on_demand = true\nclient_auth = { ca = \"c.pem\" }",
            "11:15: `client_auth` cannot be combined with the host *",
        ),
    ] {
        check(&[(&site(hosts, rest), expected)]);
    }
    let twice = "[acme.on_demand]\nallow = [\"a.test\"]\n[[sites]]\nhosts = [\"*\"]\n\
                 upstreams = [\"1\"]\non_demand = true\n[[sites]]\nhosts = [\"*\"]\n\
                 upstreams = [\"1\"]\non_demand = true\n";
    check(&[(twice, "8:10: another site already has the host * (line 4)")]);
}

#[test]
fn idle_timeouts_out_of_bounds() {
    check_before_site(&[
        (
            "[server]\nhttp1_idle_timeout = \"2d\"",
            "2:22: \"2d\" is out of bounds",
        ),
        (
            "[server]\nhttp2_idle_timeout = \"0s\"",
            "2:22: \"0s\" is out of bounds",
        ),
    ]);
}

#[test]
fn listeners_that_cannot_be_meant() {
    check_before_site(&[
        (
            "[server]\nhttp_listen = [\"unix:a.sock\", \"unix:a.sock\"]",
            "2:31: `http_listen` \"unix:dir/a.sock\" overlaps `http_listen` \"unix:dir/a.sock\" (line 2)",
        ),
        (
            "[server]\nhttp_listen = [\"unix:\"]",
            "2:16: the path is empty",
        ),
        (
            "[server]\nsocket_mode = \"0999\"",
            "2:15: \"0999\" is no file mode",
        ),
        (
            "[server]\nsocket_mode = \"0060\"",
            "2:15: \"0060\" keeps the owner itself out of the socket",
        ),
        (
            "[server]\nsocket_group = \"a b\"",
            "2:16: \"a b\" is no name of a user or a group",
        ),
        (
            "[server]\nproxy_protocol_from = [\"a.test\"]",
            "2:24: \"a.test\" is no network of addresses",
        ),
        (
            "[server]\nmax_connections = -1",
            "2:19: -1 is no number of connections",
        ),
        (
            "[server]\nmin_request_rate = \"240\"",
            "2:20: \"240\" is not a size",
        ),
        (
            "[server]\nmin_rate_after = \"0s\"",
            "2:18: \"0s\" is out of bounds",
        ),
    ]);
    let site = |keys: &str| format!("[[sites]]\nhosts = [\"a.test\"]\n{keys}\n");
    check(&[
        (
            &site("respond = \"a\"\nproxy_protocol = \"v2\""),
            "4:18: `proxy_protocol` is set, but there are no `upstreams` here",
        ),
        (
            &site("upstreams = [\"1\"]\nproxy_protocol = \"v3\""),
            "4:18: \"v3\" is no version of the PROXY protocol",
        ),
        (
            &site("upstreams = [\"1\"]\nlisten = []"),
            "4:10: `listen` is empty, so the site could not be reached",
        ),
        (
            &site("upstreams = [\"1\"]\nlisten = [\":443\"]"),
            "4:11: `listen` \"[::]:443\" overlaps `https_listen` \"[::]:443\" (its default)",
        ),
        (
            &format!(
                "{}[[sites]]\nhosts = [\"b.test\"]\nupstreams = [\"1\"]\nlisten = [\":9\"]\ntls = \"off\"\n",
                site("upstreams = [\"1\"]\nlisten = [\":9\"]")
            ),
            "8:11: `listen` \"[::]:9\" overlaps `listen` \"[::]:9\" (line 4)",
        ),
    ]);
}

#[test]
fn files_and_compression() {
    for (site, expected) in [
        ("root = \"\"", "3:8: the path is empty"),
        (
            "root = \"a\"\nupstreams = [\"1\"]",
            "3:8: `upstreams` and `root` are both set",
        ),
        (
            "root = \"a\"\nindex = [\"b/c\"]",
            "4:10: \"b/c\" is no name of a file",
        ),
        (
            "root = \"a\"\nfallback = \"index.html\"",
            "4:12: \"index.html\" is no file below the root",
        ),
        (
            "root = \"a\"\nfallback = \"/../x\"",
            "4:12: \"/../x\" is no file below the root",
        ),
        (
            "upstreams = [\"1\"]\nfallback = \"/x\"",
            "4:12: `fallback` is about files, and there is no `root`",
        ),
        (
            "root = \"a\"\nstatus = 200",
            "4:10: status 200 does not fit here",
        ),
        (
            "root = \"a\"\ncompress = [\"deflate\"]",
            "4:13: \"deflate\" is no coding",
        ),
        (
            "root = \"a\"\ncompress = [\"br\", \"br\"]",
            "4:19: this coding is already listed",
        ),
        ("root = \"a\"\ncompress = []", "4:12: `compress` is empty"),
        (
            "root = \"a\"\ncompress = \"gzip\"",
            "4:12: `compress` must be true, false or an array of codings, not a string",
        ),
    ] {
        let text = format!("[[sites]]\nhosts = [\"a.test\"]\n{site}\n");
        check(&[(&text, expected)]);
    }
}

#[test]
fn access_logs() {
    check_before_site(&[
        (
            "[access_log]\nfile = \"x\"",
            "2:1: unknown key `file` in [access_log]",
        ),
        ("[access_log]\noutput = \"\"", "2:10: the path is empty"),
        (
            "[access_log]\nformat = \"clf\"",
            "2:10: \"clf\" is no log format",
        ),
        (
            "[access_log]\nsample = \"0.1\"",
            "2:10: \"0.1\" is no share of the requests",
        ),
        (
            "[access_log]\nsample = \"1/0\"",
            "2:10: \"1/0\" is no share of the requests",
        ),
        (
            "[access_log]\nredact = [\"a=b\"]",
            "2:11: \"a=b\" is no name of a parameter",
        ),
    ]);
}

#[test]
fn forward_auth() {
    for (auth, expected) in [
        (
            "\"auth.test\"",
            "4:16: \"auth.test\" cannot be asked who is let in: it does not begin with http:// or https://",
        ),
        (
            "\"http://a:b@auth.test/\"",
            "4:16: \"http://a:b@auth.test/\" cannot be asked who is let in: it needs a host, and can have neither user nor fragment",
        ),
        (
            "{ copy_headers = [\"X-User\"] }",
            "4:16: [sites.forward_auth] has no `url`",
        ),
        (
            "{ url = \"http://a.test\", copy_headers = [\"Host\"] }",
            "4:57: a request has one Host, no more and no less",
        ),
        (
            "{ url = \"http://a.test\", copy_headers = [\"X_Real-IP\"] }",
            "4:57: the field X_Real-IP says who asked, which we know better",
        ),
        (
            "{ url = \"http://a.test\", timeout = \"1h\" }",
            "4:51: \"1h\" is out of bounds",
        ),
        (
            "{ url = \"http://a.test\", ca = \"ca.pem\" }",
            "4:46: `ca` has no effect: forward_auth is not asked over TLS",
        ),
    ] {
        let text = format!(
            "[[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"1\"]\nforward_auth = {auth}\n"
        );
        check(&[(&text, expected)]);
    }
}
