#!/bin/sh
# Installs what the tests need and this machine lacks: curl, openssl, nginx (an upstream that is
# not ours), python3 and Node (others), certbot, lego and rsync (they renew what is served), BIND (a DNS
# server), certutil (the trust of browsers), h2spec (a conformance suite for HTTP/2), and Pebble, the
# ACME server that Let's Encrypt's authors test with; Caddy and step-ca (two others), the latter unless
# PERENNIAL_WITHOUT_STEP_CA=1 says not to. Safe to run again.
set -eu
cd "$(dirname "$0")/.."
. scripts/apt.sh

PEBBLE_VERSION=v2.10.1
STEP_CA_VERSION=v0.30.2
H2SPEC_VERSION=v2.2.1+incompatible

install_programs() {
    command -v curl >/dev/null 2>&1 || need curl "the client with which the tests speak HTTP/1.1 and HTTP/2"
    command -v openssl >/dev/null 2>&1 || need openssl "the tests look at served certificates with it"
    # As root it is in /usr/sbin, which is not in every user's PATH.
    if ! command -v nginx >/dev/null 2>&1 && [ ! -x /usr/sbin/nginx ]; then
        need_without_unit nginx-light nginx.service "an upstream for the tests; it is not started as a service"
    fi
    command -v python3 >/dev/null 2>&1 || need python3 "another upstream for the tests"
    command -v node >/dev/null 2>&1 || need nodejs "another one, with HTTP/2 and trailers"
    command -v certbot >/dev/null 2>&1 ||
        need_without_unit certbot certbot.timer "renews a certificate in the tests; its timer stays off"
    command -v lego >/dev/null 2>&1 || need lego "renews a certificate in the tests"
    command -v rsync >/dev/null 2>&1 ||
        need_without_unit rsync rsync.service "copies a renewed certificate in the tests; no daemon is started"
    if ! command -v named >/dev/null 2>&1 && [ ! -x /usr/sbin/named ]; then
        need_without_unit bind9 named.service "the DNS server of the DNS-01 tests; each starts one of its own"
    fi
    command -v certutil >/dev/null 2>&1 || need libnss3-tools "the trust of browsers in the tests"
    command -v caddy >/dev/null 2>&1 ||
        need_without_unit caddy caddy.service "an ACME server for the tests; each starts one of its own"
    command -v nsupdate >/dev/null 2>&1 || need bind9-dnsutils "changes a DNS zone in the tests"
    install_missing_without_units
}

# Pebble wants Go 1.24; from 1.21 on Go fetches the toolchain that a module asks for by itself.
GO_NEEDED=1.21

has_go() {
    command -v go >/dev/null 2>&1 && at_least "$(go env GOVERSION | sed 's/^go//')" "$GO_NEEDED"
}

# Debian 13 and Ubuntu 24.04 have a Go that is new enough, Debian 12 does not.
install_go() {
    command -v apt-cache >/dev/null 2>&1 || return 1
    candidate=$(apt-cache policy golang-go | sed -n 's/^ *Candidate: *\([0-9]*:\)\{0,1\}\([0-9.]*\).*/\2/p')
    [ -n "$candidate" ] && at_least "$candidate" "$GO_NEEDED" || return 1
    need golang-go "builds Pebble, the ACME server for the tests"
    install_missing
}

install_pebble() {
    for command in pebble pebble-challtestsrv; do
        echo "installing $command $PEBBLE_VERSION by go install"
        go install "github.com/letsencrypt/pebble/v2/cmd/$command@$PEBBLE_VERSION" || return 1
    done
}

without_pebble() {
    cat >&2 <<EOF

*********************************************************************************************
*  No Pebble $PEBBLE_VERSION: $1
*  The tests against a real ACME server are left out; ACME is then proven against the
*  scripted CA of the tests alone. For all of them: install Go 1.24 or newer, run this again.
*********************************************************************************************

EOF
}

install_h2spec() {
    has_go || return 1
    echo "installing h2spec $H2SPEC_VERSION by go install"
    go install "github.com/summerwind/h2spec/cmd/h2spec@$H2SPEC_VERSION"
}

# Its build takes five minutes of processor time and 600 MB of Go's cache, once. Where that takes too
# long the tests do without.
install_step_ca() {
    has_go || return 1
    echo "installing step-ca $STEP_CA_VERSION by go install; this takes minutes, once"
    CGO_ENABLED=0 timeout 15m go install "github.com/smallstep/certificates/cmd/step-ca@$STEP_CA_VERSION"
}

without_step_ca() {
    cat >&2 <<EOF

*********************************************************************************************
*  No step-ca: $1
*  What works with it is not proven by this run: its tests are left out. Pebble, Caddy and the
*  scripted CA remain.
*********************************************************************************************

EOF
}

install_programs
# Where `go install` puts its programs comes first, before an older Pebble of the system.
export GOBIN="${GOBIN:-$HOME/go/bin}"
PATH="$GOBIN:$PATH"
if scripts/has-pebble.sh; then
    :
elif ! has_go && ! install_go; then
    without_pebble "it is not here, and neither is a Go that can build it"
elif ! install_pebble || ! scripts/has-pebble.sh; then
    without_pebble "building it with go install failed, see above"
fi
command -v h2spec >/dev/null 2>&1 || install_h2spec ||
    echo "no h2spec, as there is no Go that can build it: its test is left out" >&2
if command -v step-ca >/dev/null 2>&1; then
    :
elif [ -n "${PERENNIAL_WITHOUT_STEP_CA:-}" ]; then
    without_step_ca "PERENNIAL_WITHOUT_STEP_CA says so"
elif ! install_step_ca; then
    without_step_ca "it is not here, and building it with go install failed, see above"
fi
