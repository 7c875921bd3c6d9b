#!/bin/sh
# Installs what the tests need and this machine lacks: curl, openssl, nginx (an upstream that is
# not ours), and Pebble, the ACME server that Let's Encrypt's authors test with. Safe to run again.
set -eu
cd "$(dirname "$0")/.."
. scripts/apt.sh

PEBBLE_VERSION=v2.10.1
POLICY=/usr/sbin/policy-rc.d

# Debian starts a freshly installed nginx, which would take port 80. Nothing that is installed
# here is to start, now or at the next boot.
forbid_service_starts() {
    if [ ! -e "$POLICY" ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
        as_root chmod 755 "$POLICY"
        trap 'as_root rm -f "$POLICY"' EXIT
        trap 'exit 130' INT TERM
    fi
}

stop_installed_nginx() {
    if [ -d /run/systemd/system ]; then
        as_root systemctl disable --now nginx.service >/dev/null 2>&1 || true
    fi
}

install_programs() {
    new_nginx=no
    command -v curl >/dev/null 2>&1 || need curl "the client with which the tests speak HTTP/1.1 and HTTP/2"
    command -v openssl >/dev/null 2>&1 || need openssl "the tests look at served certificates with it"
    # As root it is in /usr/sbin, which is not in every user's PATH.
    if ! command -v nginx >/dev/null 2>&1 && [ ! -x /usr/sbin/nginx ]; then
        need nginx-light "an upstream for the tests; it is not started as a service"
        new_nginx=yes
        forbid_service_starts
    fi
    install_missing
    if [ "$new_nginx" = yes ]; then
        stop_installed_nginx
    fi
}

# has_pebble: whether a Pebble with renewal information (ARI), profiles and alreadyReplaced is
# there. A binary that `go install` made does not know its own version, so its text is asked.
has_pebble() {
    pebble=$(command -v pebble) && command -v pebble-challtestsrv >/dev/null 2>&1 \
        && grep -aq alreadyReplaced "$pebble"
}

# has_go: Go 1.21 is the first that fetches the newer toolchain a module asks for by itself.
has_go() {
    command -v go >/dev/null 2>&1 || return 1
    go_found=$(go env GOVERSION | sed 's/^go//')
    [ "$(printf '1.21\n%s\n' "$go_found" | sort -V | head -n 1)" = 1.21 ]
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
*  No Pebble: $1
*  The tests against a real ACME server are left out; ACME is then proven against the
*  scripted CA of the tests alone. For all of them: install Go 1.24 or newer, run this again.
*********************************************************************************************

EOF
}

install_programs
# Where `go install` puts its programs comes first, before an older Pebble of the system.
export GOBIN="${GOBIN:-$HOME/go/bin}"
PATH="$GOBIN:$PATH"
if has_pebble; then
    :
elif ! has_go; then
    without_pebble "it is not installed, and Go 1.24 or newer, which builds it, is not there"
elif ! install_pebble || ! has_pebble; then
    without_pebble "go install failed, see above"
fi
