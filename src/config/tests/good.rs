//! Good configurations, and what they mean.

use super::*;

fn site(rest: &str) -> Site {
    let text = format!("[[sites]]\nhosts = [\"a.test\"]\n{rest}");
    good(&text).sites.remove(0)
}

fn tcp(host: &str, port: u16, tls: bool) -> Upstream {
    Upstream::Tcp {
        host: host.to_owned(),
        port,
        tls,
        http2: false,
    }
}

#[test]
fn the_least_configuration_has_all_defaults() {
    let config = good("[[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"3000\"]\n");
    assert_eq!(config.path.as_deref(), Some(Path::new("dir/p.toml")));
    let server = &config.server;
    assert_eq!(server.http_listen, ["[::]:80".parse().unwrap()]);
    assert_eq!(server.https_listen, ["[::]:443".parse().unwrap()]);
    let admin = "127.0.0.1:2019".parse().unwrap();
    assert_eq!(server.admin_listen, AdminListen::Tcp(admin));
    assert_eq!(server.state_dir, Path::new("/var/lib/perennial"));
    assert_eq!((server.threads, &server.state_dir_note), (0, &None));
    assert_eq!(server.log_level, LogLevel::Info);
    assert_eq!(server.grace_period, Duration::from_secs(30));
    let certificates = &config.certificates;
    assert!(certificates.directories.is_empty() && certificates.files.is_empty());
    assert_eq!(certificates.poll_interval, Duration::from_secs(5));
    assert!(certificates.watch && certificates.default.is_none());
    let [authority] = &config.acme.authorities[..] else {
        panic!("one CA")
    };
    assert_eq!(
        authority.directory,
        "https://acme-v02.api.letsencrypt.org/directory"
    );
    assert_eq!(
        authority.challenges,
        [ChallengeType::TlsAlpn01, ChallengeType::Http01]
    );
    assert_eq!(authority.key_type, KeyType::P256);
    assert!(authority.external_account.is_none() && authority.profile.is_none());
    let site = &config.sites[0];
    assert_eq!(site.tls, TlsMode::Auto);
    assert_eq!(site.certificate_per, CertificatePer::Host);
    assert!(config.file_references.is_empty());
}

#[test]
fn a_takeover_is_inherited_by_the_sites_that_files_serve() {
    let site = |host: &str, rest: &str| {
        format!("[[sites]]\nhosts = [\"{host}\"]\nupstreams = [\"1\"]\n{rest}\n")
    };
    let text = [
        "[certificates]\ndirectories = [\"d\"]\ntakeover = \"acme\"\n".to_owned(),
        site("a.test", ""),
        site("b.test", "tls = \"files\"\ntakeover = \"internal\""),
        site("c.test", "takeover = \"off\""),
        site("d.test", "tls = \"internal\""),
        site("*.e.test", "takeover = \"internal\""),
    ];
    let config = good(&text.concat());
    let found: Vec<_> = config.sites.iter().map(|site| site.takeover).collect();
    let (acme, internal) = (Some(Takeover::Acme), Some(Takeover::Internal));
    assert_eq!(found, [acme, internal, None, None, internal]);
    assert_eq!(config.certificates.takeover, acme);
}

#[test]
fn addresses_that_do_not_clash() {
    let config = good(
        "[server]\nhttp_listen = [\"127.0.0.1:0\", \"[::1]:0\", \"0.0.0.0:81\", \"[::1]:81\"]\n\
         https_listen = [\":0\", \"127.0.0.1:8443\", \"127.0.0.2:8443\"]\n\
         admin_listen = \"unix:run/admin.sock\"\n\
         [[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"3000\"]\n",
    );
    assert_eq!(config.server.http_listen.len(), 4);
    assert_eq!(config.server.https_listen[0], "[::]:0".parse().unwrap());
    assert_eq!(
        config.server.admin_listen,
        AdminListen::Unix("dir/run/admin.sock".into())
    );
}

#[test]
fn durations() {
    for (text, expected) in [
        ("250ms", Duration::from_millis(250)),
        ("5s", Duration::from_secs(5)),
        ("2m", Duration::from_secs(120)),
        ("12h", Duration::from_secs(43_200)),
        ("1d", Duration::from_secs(86_400)),
    ] {
        let config = good(&format!(
            "[certificates]\npoll_interval = \"{text}\"\n[[sites]]\nhosts = [\"a.test\"]\n\
             upstreams = [\"3000\"]\n"
        ));
        assert_eq!(config.certificates.poll_interval, expected);
    }
}

#[test]
fn upstreams() {
    for (text, expected) in [
        ("3000", tcp("127.0.0.1", 3000, false)),
        ("App.test:80", tcp("app.test", 80, false)),
        ("my_app:80", tcp("my_app", 80, false)),
        ("10.0.0.1:80", tcp("10.0.0.1", 80, false)),
        ("[::1]:3000", tcp("::1", 3000, false)),
        ("http://a.test", tcp("a.test", 80, false)),
        ("https://a.test/", tcp("a.test", 443, true)),
        ("https://[fd00::1]", tcp("fd00::1", 443, true)),
        ("https://[fd00::1]:8443", tcp("fd00::1", 8443, true)),
        ("unix:/run/a.sock", Upstream::Unix("/run/a.sock".into())),
        ("unix:a.sock", Upstream::Unix("dir/a.sock".into())),
        (
            "respond:Hi: it = works",
            Upstream::Respond("Hi: it = works".into()),
        ),
    ] {
        let site = site(&format!("upstreams = [\"{text}\"]"));
        assert_eq!(site.routes[0].upstreams().collect::<Vec<_>>(), [&expected]);
    }
}

#[test]
fn routes_are_sorted_most_specific_first() {
    let route = |path: &str| format!("[[sites.routes]]\npath = \"{path}\"\nupstreams = [\"1\"]\n");
    let routes = ["/a/*", "/a/b/*", "/a", "/a/b/c"].map(route).concat();
    let site = site(&format!("upstreams = [\"2\"]\n{routes}"));
    let paths: Vec<_> = site.routes.iter().map(|route| &route.path).collect();
    assert_eq!(
        paths,
        [
            &PathPattern::Exact("/a".into()),
            &PathPattern::Exact("/a/b/c".into()),
            &PathPattern::Prefix("/a/b/".into()),
            &PathPattern::Prefix("/a/".into()),
            &PathPattern::Prefix("/".into()),
        ]
    );
    let last: Vec<_> = site.routes[4].upstreams().collect();
    assert_eq!(last, [&tcp("127.0.0.1", 2, false)]);
}

#[test]
fn conditions_come_before_none_and_stars_by_what_is_written() {
    let route = |path: &str, more: &str| {
        format!("[[sites.routes]]\npath = \"{path}\"\nupstreams = [\"1\"]\n{more}")
    };
    let routes = [
        route("/a/*", ""),
        route("/a/*", "methods = [\"POST\"]\n"),
        route(
            "/a/*",
            "headers = { X-Beta = \"1\", Accept = \"*json*\" }\n",
        ),
        route("/a/*.php", ""),
        route("/a/*/edit", ""),
    ];
    let site = site(&routes.concat());
    let found: Vec<String> = site
        .routes
        .iter()
        .map(|route| {
            format!(
                "{:?} {} {}",
                route.path,
                route.methods.len(),
                route.conditions.len()
            )
        })
        .map(|text| text.replace("Wild ", ""))
        .collect();
    let kinds: Vec<&str> = found
        .iter()
        .map(|text| text.split('(').next().unwrap())
        .collect();
    assert_eq!(
        kinds,
        ["Glob", "Glob", "Prefix", "Prefix", "Prefix"],
        "{found:#?}"
    );
    assert!(
        found[2].ends_with(" 0 2") && found[3].ends_with(" 1 0"),
        "{found:#?}"
    );
}

#[test]
fn stars_stay_within_a_segment() {
    let matches = |pattern: &str, path: &str| {
        let text = format!("[[sites.routes]]\npath = \"{pattern}\"\nupstreams = [\"1\"]\n");
        site(&text).routes[0].path.matches(path.as_bytes())
    };
    for (pattern, path, expected) in [
        ("/files/*.pdf", "/files/a.pdf", true),
        ("/files/*.pdf", "/files/b/a.pdf", false),
        ("/*/edit", "/a/edit", true),
        ("/*/edit", "/a/b/edit", false),
        ("/*/edit", "/edit", false),
        ("/a/*/b/*", "/a/x/b", true),
        ("/a/*/b/*", "/a/x/b/c/d", true),
        ("/a/*/b/*", "/a/x/bc", false),
    ] {
        assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
    }
}

#[test]
fn wildcards_that_need_no_order() {
    for text in [
        "[certificates]\ndirectories = [\"certs\"]\n[[sites]]\nhosts = [\"*.example.com\"]\n",
        "[[certificates.files]]\ncertificate = \"a.pem\"\n[[sites]]\nhosts = [\"*.example.com\"]\n",
        "[[sites]]\nhosts = [\"*.example.com\"]\ntls = \"internal\"\n",
        "[[sites]]\nhosts = [\"*.example.com\"]\ntls = \"off\"\n",
        "[[sites]]\nhosts = [\"*.home.arpa\"]\n",
    ] {
        assert!(good(&format!("{text}upstreams = [\"3000\"]")).sites[0].hosts[0].is_wildcard());
    }
}

#[test]
fn hosts_can_be_addresses() {
    let config = good(
        "[[sites]]\nhosts = [\"192.0.2.1\", \"2001:db8::1\"]\ntls = \"acme\"\nupstreams = \
         [\"3000\"]\n",
    );
    assert_eq!(config.sites[0].hosts.len(), 2);
}

#[test]
fn fallbacks_inherit_all_but_what_belongs_to_one_ca() {
    let config = good(
        "[acme]\ndirectory = \"http://127.0.0.1:4000/dir\"\nemail = \"a@b.test\"\n\
         challenges = [\"http-01\"]\nkey_type = \"p384\"\nprofile = \"shortlived\"\n\
         ca_certificate = \"root.pem\"\nexternal_account = { kid = \"k\", hmac_key = \
         \"${EAB_KEY}\" }\n\
         [[acme.fallback]]\ndirectory = \"https://b.test/dir\"\nkey_type = \"rsa2048\"\n\
         [acme.fallback.external_account]\nkid = \"k2\"\nhmac_key_file = \"hmac.key\"\n\
         [[acme.fallback]]\ndirectory = \"https://c.test/dir\"\n\
         [[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"3000\"]\n",
    );
    let [first, second, third] = &config.acme.authorities[..] else {
        panic!("three CAs")
    };
    let key = |ca: &CertificateAuthority| ca.external_account.as_ref().unwrap().hmac_key.clone();
    assert_eq!(key(first), b"secret-key");
    assert_eq!(key(second), b"secret-key");
    assert_eq!(second.key_type, KeyType::Rsa2048);
    assert_eq!(third.key_type, KeyType::P384);
    assert!(third.external_account.is_none() && third.profile.is_none());
    for inherited in [second, third] {
        assert_eq!(inherited.email.as_deref(), Some("a@b.test"));
        assert_eq!(inherited.challenges, [ChallengeType::Http01]);
        assert_eq!(inherited.ca_certificate, Some("dir/root.pem".into()));
    }
    assert!(!format!("{config:?}").contains("secret"));
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_no_matter() {
    good("\u{feff}[[sites]]\r\nhosts = [\"a.test\"]\r\nupstreams = [\"3000\"]\r\n");
    let found = parse("\u{feff}[server]\r\n[sever]\r\n").unwrap_err();
    assert!(
        found[1].to_string().starts_with("dir/p.toml:2:2: "),
        "{found}"
    );
}

#[test]
fn the_command_line_says_what_a_file_says() {
    let arguments = CommandLine {
        sites: [
            "example.com=3000",
            "Example.com=3001",
            "example.com/api/*=10.0.0.1:80",
            "localhost=respond:a=b",
            "docs.localhost=./public/",
        ]
        .map(str::to_owned)
        .to_vec(),
        https_listen: vec![":8443".into()],
        admin_listen: Some("off".into()),
        state_dir: Some("state".into()),
        acme_directory: Some("https://127.0.0.1:14000/dir".into()),
        acme_ca_certificate: Some("pebble.pem".into()),
        email: Some("ops@example.com".into()),
        internal: true,
        ..CommandLine::default()
    };
    let config = Config::from_arguments(arguments, &environment()).unwrap();
    assert_eq!(config.path, None);
    assert_eq!(config.server.http_listen, ["[::]:80".parse().unwrap()]);
    assert_eq!(config.server.https_listen, ["[::]:8443".parse().unwrap()]);
    assert_eq!(config.server.admin_listen, AdminListen::Off);
    assert_eq!(config.server.state_dir, Path::new("state"));
    assert_eq!(
        config.acme.authorities[0].email.as_deref(),
        Some("ops@example.com")
    );
    assert_eq!(config.file_references[0].purpose, FilePurpose::TrustAnchors);
    let [first, second, third] = &config.sites[..] else {
        panic!("three sites")
    };
    let public = Files::below("public".into());
    assert_eq!(third.routes[0].action, Action::Files(public));
    let root = config.file_references.last().unwrap();
    assert_eq!(root.purpose, FilePurpose::Root);
    assert_eq!((first.tls, first.routes.len()), (TlsMode::Internal, 2));
    assert_eq!(first.routes[0].path, PathPattern::Prefix("/api/".into()));
    assert_eq!(first.routes[1].upstreams().count(), 2);
    assert_eq!(
        second.routes[0].upstreams().collect::<Vec<_>>(),
        [&Upstream::Respond("a=b".into())]
    );
}

#[test]
fn files_that_are_named_are_looked_at_where_they_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "good.pem",
        "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n",
    );
    write("empty.pem", "");
    let file = dir.path().join("p.toml");
    write(
        "p.toml",
        "[certificates]\ndirectories = [\".\", \"nowhere\", \"good.pem\"]\n\
         [[certificates.files]]\ncertificate = \"good.pem\"\n\
         [[certificates.files]]\ncertificate = \"missing.pem\"\n\
         [[certificates.files]]\ncertificate = \"empty.pem\"\nprivate_key = \"nowhere\"\n\
         [acme]\nca_certificate = \"empty.pem\"\n\
         [[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"3000\"]\n",
    );
    let found = check_files(&Config::load(&file).unwrap()).to_string();
    let found = found.replace(&format!("{}/", dir.path().display()), "");
    assert_eq!(
        found,
        "p.toml:2:21: the drop folder nowhere does not exist\n  \
         help: make the folder, or correct the path\n\
         p.toml:2:32: the drop folder good.pem is not a directory\n\
         p.toml:6:15: the certificate file missing.pem does not exist\n  \
         help: put the file there, or correct the path\n\
         p.toml:9:15: the private key file nowhere does not exist\n  \
         help: put the file there, or correct the path\n\
         p.toml:11:18: the ca_certificate empty.pem holds no PEM certificate"
    );
}

#[test]
fn a_file_that_cannot_be_read_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    let missing = Config::load(&file).unwrap_err().to_string();
    assert!(
        missing.starts_with("cannot read the configuration "),
        "{missing}"
    );
    std::fs::write(&file, b"# fine\n# not \xff").unwrap();
    let found = Config::load(&file).unwrap_err().to_string();
    let expected = format!(
        "{}:2:7: invalid TOML: this byte is not UTF-8",
        file.display()
    );
    assert!(found.starts_with(&expected), "{found}");
}

#[test]
fn session_tickets() {
    let config = good("[[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"3000\"]\n");
    assert!(config.tls.session_ticket_key_files.is_empty() && config.tls.resume_after_swap);
    let twelve_hours = Duration::from_secs(43_200);
    assert_eq!(config.tls.session_ticket_rotation, twelve_hours);
    let config = good(
        "[tls]\nsession_ticket_key_files = [\"a.key\", \"/b.key\"]\nresume_after_swap = false\n\
         [[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"3000\"]\n",
    );
    let files = &config.tls.session_ticket_key_files;
    assert_eq!(files[..], [Path::new("dir/a.key"), Path::new("/b.key")]);
    assert!(!config.tls.resume_after_swap);
    assert_eq!(config.file_references.len(), 2);
}

#[test]
fn client_authentication() {
    let site = site(
        "upstreams = [\"3000\"]\n[sites.client_auth]\nca = \"c.pem\"\ncrl = \"c.crl\"\nmode = \"request\"\n",
    );
    let expected = ClientAuth {
        ca: "dir/c.pem".into(),
        crl: Some("dir/c.crl".into()),
        mode: ClientAuthMode::Request,
    };
    assert_eq!(site.client_auth, Some(expected));
    let auth = self::site("upstreams = [\"3000\"]\nclient_auth = { ca = \"c.pem\" }\n").client_auth;
    assert_eq!(auth.unwrap().mode, ClientAuthMode::Require);
}

#[test]
fn tls_towards_upstreams_is_inherited_whole_or_not_at_all() {
    let site = site(
        "upstreams = [\"https://u.test\"]\nupstream_tls = { ca = \"ca.pem\", certificate = \"c.pem\" }\n\
         [[sites.routes]]\npath = \"/own/*\"\nupstreams = [\"https://v.test\"]\n\
         upstream_tls = { server_name = \"w.test\", verify = false }\n\
         [[sites.routes]]\npath = \"/inherits/*\"\nupstreams = [\"https://x.test\"]\n",
    );
    let inherited = UpstreamTls {
        ca: Some("dir/ca.pem".into()),
        identity: Some(ClientIdentity {
            certificate: "dir/c.pem".into(),
            private_key: "dir/c.pem".into(),
        }),
        server_name: None,
        verify: true,
    };
    let own = UpstreamTls {
        ca: None,
        identity: None,
        server_name: Some("w.test".parse().unwrap()),
        verify: false,
    };
    for route in &site.routes {
        let expected = match &route.path {
            PathPattern::Prefix(prefix) if prefix == "/own/" => &own,
            _ => &inherited,
        };
        assert_eq!(route.upstream_tls(), Some(expected), "{:?}", route.path);
    }
}

#[test]
fn each_dns_provider_has_its_domains() {
    let config = good(
        "[acme.dns]\npropagation_timeout = \"5m\"\nprovider = \"exec\"\nprogram = \"hook\"\n\
         nameservers = [\"192.0.2.1\"]\n\
         [[acme.dns.providers]]\ndomains = [\"Example.com\", \".a.test\"]\nprovider = \"rfc2136\"\n\
         server = \"tcp://ns1.example.com\"\nkey_name = \"k\"\nkey = \"c2VjcmV0\"\nttl = \"5m\"\n\
         [[acme.dns.providers]]\ndomains = [\"sub.example.com\"]\nprovider = \"cloudflare\"\n\
         api_token = \"${EAB_KEY}\"\n\
         [[sites]]\nhosts = [\"*.example.com\", \"*.else.test\"]\nupstreams = [\"3000\"]\n",
    );
    let dns = &config.acme.dns;
    let name = |domain: &str| dns.zones[dns.zones_of(domain).unwrap()].writer.name();
    assert_eq!(name("www.example.com"), "rfc2136");
    assert_eq!(name("a.test"), "rfc2136");
    assert_eq!(name("x.sub.example.com"), "cloudflare");
    assert_eq!(name("else.test"), "exec");
    // What is waited for is as for everything, the servers are not.
    let zones = &dns.zones[dns.zones_of("a.test").unwrap()];
    assert_eq!(zones.propagation_timeout, Duration::from_secs(300));
    assert_eq!(zones.ttl, Duration::from_secs(300));
    assert!(zones.nameservers.is_empty());
}

#[test]
fn a_dns_provider_makes_dns_01_a_default_and_wildcards_possible() {
    let config = good(
        "[acme.dns]\nprovider = \"cloudflare\"\napi_token = \"${EAB_KEY}\"\n\
         resolvers = [\"192.0.2.53\"]\npropagation_timeout = \"5m\"\n\
         [[acme.fallback]]\ndirectory = \"https://b.test/\"\n\
         [[sites]]\nhosts = [\"*.example.com\"]\nupstreams = [\"3000\"]\n",
    );
    let dns = &config.acme.dns;
    let [zones] = &dns.zones[..] else { panic!() };
    assert_eq!(zones.writer.name(), "cloudflare");
    assert_eq!(dns.resolvers, ["192.0.2.53:53".parse().unwrap()]);
    assert_eq!(zones.propagation_timeout, Duration::from_secs(300));
    for authority in &config.acme.authorities {
        assert!(authority.challenges.contains(&ChallengeType::Dns01));
    }
    assert!(
        !format!("{config:?}").contains("c2VjcmV0"),
        "a secret shows"
    );
    let other = good(
        "[acme.dns]\nprovider = \"exec\"\nprogram = \"hook\"\ntimeout = \"5s\"\n\
         [[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"3000\"]\n",
    );
    let exec = DnsWriter::Exec {
        program: "dir/hook".into(),
        timeout: Duration::from_secs(5),
    };
    assert_eq!(other.acme.dns.zones[0].writer, exec);
    assert_eq!(other.file_references[0].purpose, FilePurpose::DnsProgram);
    let none = good("[[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"3000\"]\n");
    assert_eq!(none.acme.dns, Dns::default());
    assert!(
        !none.acme.authorities[0]
            .challenges
            .contains(&ChallengeType::Dns01)
    );
}

#[test]
fn certificates_on_demand() {
    let text = |table: &str| {
        format!(
            "[acme.on_demand]\n{table}\n[[sites]]\nhosts = [\"*\", \"*.a.test\"]\n\
             upstreams = [\"1\"]\non_demand = true\n"
        )
    };
    let config = good(&text("ask = \"http://app:9000/allowed\""));
    let site = &config.sites[0];
    assert!(site.on_demand && site.any_host);
    assert_eq!(site.hosts, ["*.a.test".parse().unwrap()]);
    let on_demand = config.acme.on_demand.unwrap();
    let ask = Permission::Ask {
        url: "http://app:9000/allowed".to_owned(),
        timeout: Duration::from_secs(5),
    };
    assert_eq!(on_demand.permission, ask);
    assert_eq!(on_demand.wait, Duration::from_secs(30));
    assert_eq!(on_demand.max_loaded, 10_000);
    let shown = |limit: Option<Limit>| limit.map(|limit| limit.to_string());
    let budgets = on_demand.budgets;
    assert_eq!(shown(budgets.per_client).as_deref(), Some("30 in 10m"));
    assert_eq!(shown(budgets.per_domain).as_deref(), Some("50 in 1h"));
    assert_eq!(shown(budgets.total).as_deref(), Some("300 in 1h"));

    let config = good(&text(
        "allow = [\".Customers.example\"]\nwait = \"1m\"\nmax_loaded = 5\n\
         budgets = { total = \"off\", per_client = \"1/1s\" }",
    ));
    let on_demand = config.acme.on_demand.unwrap();
    let allow = Permission::Allow(vec!["customers.example".into()]);
    assert_eq!((on_demand.permission, on_demand.max_loaded), (allow, 5));
    assert_eq!(on_demand.wait, Duration::from_secs(60));
    assert_eq!(on_demand.budgets.total, None);
    let per_client = shown(on_demand.budgets.per_client);
    assert_eq!(per_client.as_deref(), Some("1 in 1s"));
}

#[test]
fn listeners_on_unix_sockets_and_who_may_connect() {
    let config = good(
        "[server]\nhttp_listen = [\":80\", \"unix:run/http.sock\"]\nsocket_mode = \"0620\"\n\
         socket_group = \"www-data\"\nproxy_protocol_from = [\"10.0.0.0/8\", \"unix\"]\n\
         max_connections = 10\nmax_connections_per_client = 0\nmin_request_rate = \"0B\"\n\
         min_response_rate = \"1KiB\"\nmin_rate_after = \"5s\"\n\
         http1_idle_timeout = \"2s\"\nhttp2_idle_timeout = \"1h\"\n\
         [[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"3000\"]\nproxy_protocol = \"v1\"\n\
         [[sites.routes]]\npath = \"/a\"\nupstreams = [\"3001\"]\nproxy_protocol = \"off\"\n\
         [[sites.routes]]\npath = \"/b\"\nupstreams = [\"3002\"]\n",
    );
    let server = &config.server;
    assert_eq!(
        server.http_listen[1],
        ListenAddress::Unix("dir/run/http.sock".into())
    );
    assert_eq!(server.socket_file.mode, 0o620);
    assert_eq!(server.socket_file.group.as_deref(), Some("www-data"));
    assert!(server.proxy_protocol_from.unix);
    assert_eq!(server.proxy_protocol_from.networks.len(), 1);
    assert_eq!(server.max_connections, Some(10));
    assert_eq!(server.max_connections_per_client, Some(0));
    let rates = server.min_rates;
    assert_eq!((rates.request, rates.response), (None, Some(1024)));
    assert_eq!(rates.grace, Duration::from_secs(5));
    let idle = server.idle_timeouts;
    assert_eq!((idle.http1.as_secs(), idle.http2.as_secs()), (2, 3600));
    let routes = config.sites[0].routes.iter();
    let versions: Vec<_> = routes.map(|route| route.proxy_protocol).collect();
    let v1 = Some(ProxyProtocol::V1);
    assert_eq!(versions, [None, v1, v1]);
}

#[test]
fn files_and_compression() {
    let site = site(
        "root = \"www\"\nindex = [\"a.html\", \"b.html\"]\nfallback = \"/app/a.html\"\n\
         follow_symlinks = true\ndot_files = true\nbrowse = true\nprecompressed = false\ncompress = true\n\
         [[sites.routes]]\npath = \"/raw/*\"\nroot = \"/srv/raw\"\ncompress = false\n\
         [[sites.routes]]\npath = \"/api/*\"\nupstreams = [\"1\"]\ncompress = [\"gzip\"]\n",
    );
    let [raw, api, own] = &site.routes[..] else {
        panic!("{site:?}")
    };
    let files = Files {
        root: "dir/www".into(),
        index: vec!["a.html".into(), "b.html".into()],
        fallback: Some("app/a.html".into()),
        follow_symlinks: true,
        dot_files: true,
        browse: true,
        precompressed: false,
    };
    assert_eq!(own.action, Action::Files(files));
    assert_eq!(own.compress, [Coding::Zstd, Coding::Brotli, Coding::Gzip]);
    assert_eq!(raw.action, Action::Files(Files::below("/srv/raw".into())));
    assert!(raw.compress.is_empty());
    assert_eq!(api.compress, [Coding::Gzip]);
}

#[test]
fn the_access_log() {
    let config = good(
        "[access_log]\noutput = \"log/access.log\"\nformat = \"combined\"\nsample = \"1/50\"\n\
         query = true\nredact = [\"Invite\"]\n[[sites]]\nhosts = [\"a.test\"]\n\
         upstreams = [\"1\"]\naccess_log = false\n",
    );
    let log = &config.access_log;
    assert_eq!(log.output, LogOutput::File("dir/log/access.log".into()));
    assert_eq!(log.format, Some(LogFormat::Combined));
    assert_eq!((log.sample, log.query), (50, true));
    let redacts = |name: &str| log.redact.iter().any(|known| **known == *name);
    assert!(redacts("invite"));
    assert_eq!(config.sites[0].access_log, SiteLog::Off);
    let config = good("[[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"1\"]\n");
    assert_eq!(config.access_log, AccessLog::default());
    assert_eq!(config.sites[0].access_log, SiteLog::Shared);
    let text = "[[sites]]\nhosts = [\"a.test\"]\nupstreams = [\"1\"]\naccess_log = \"own.log\"\n";
    let own = SiteLog::File("dir/own.log".into());
    assert_eq!(good(text).sites[0].access_log, own);
}

#[test]
fn forward_auth_is_inherited_and_taken_back() {
    let site = site(
        "upstreams = [\"1\"]\nforward_auth = \"http://127.0.0.1:9000/verify\"\n\
         [[sites.routes]]\npath = \"/open/*\"\nupstreams = [\"1\"]\nforward_auth = \"off\"\n\
         [[sites.routes]]\npath = \"/own/*\"\nupstreams = [\"1\"]\n\
         forward_auth = { url = \"https://auth.test/\", copy_headers = [\"X-User\"], timeout = \"1s\", \
         ca = \"ca.pem\" }\n\
         [[sites.routes]]\npath = \"/sock/*\"\nupstreams = [\"1\"]\n\
         forward_auth = \"unix:auth.sock:/a?b\"\n",
    );
    let auth = |route: usize| site.routes[route].access.forward_auth.clone();
    assert_eq!(auth(0), None);
    let own = ForwardAuth {
        url: "https://auth.test/".into(),
        asked: "https://auth.test/".into(),
        socket: None,
        ca: Some("dir/ca.pem".into()),
        copy_headers: vec!["X-User".into()],
        timeout: Duration::from_secs(1),
    };
    assert_eq!(auth(2), Some(own));
    let local = auth(1).unwrap();
    assert_eq!(&*local.asked, "http://localhost/a?b");
    assert_eq!(local.socket, Some("dir/auth.sock".into()));
    let inherited = auth(3).unwrap();
    assert_eq!(&*inherited.url, "http://127.0.0.1:9000/verify");
    assert_eq!(inherited.timeout, Duration::from_secs(5));
}
