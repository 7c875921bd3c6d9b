#!/bin/sh
# Installs what the measurements need and this machine lacks: the servers beside which Perennial is
# measured (nginx and HAProxy as the system packages them, the newest Caddy where there is a Go),
# and valgrind, which counts instructions. A server that cannot be had is left out.
# Safe to run again.
set -eu
cd "$(dirname "$0")/.."
. scripts/apt.sh

# As root they are in /usr/sbin, which is not in every user's PATH.
export GOBIN="${GOBIN:-$HOME/go/bin}"
PATH="$GOBIN:$PATH:/usr/sbin"
has() {
    command -v "$1" >/dev/null 2>&1
}

has nginx || need_without_unit nginx-light nginx.service "is measured; it is not started as a service"
has haproxy || need_without_unit haproxy haproxy.service "is measured; it is not started as a service"
has valgrind || need valgrind "counts the instructions of make bench-guard"
install_missing_without_units

if ! has caddy; then
    if has go; then
        echo "installing the newest Caddy, which is measured, by go install"
        go install github.com/caddyserver/caddy/v2/cmd/caddy@latest ||
            echo "Caddy cannot be built; the measurements go without it" >&2
    else
        echo "neither Caddy nor a Go that builds it is here; the measurements go without Caddy" >&2
    fi
fi
