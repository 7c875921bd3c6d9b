# Sourced by the setup scripts: collects what is missing, then installs it by apt in one go.
# shellcheck shell=sh

MISSING_PACKAGES=""

# need PACKAGE WHY: remembers a package that is to be installed and says why.
need() {
    echo "missing: $1 ($2)"
    MISSING_PACKAGES="$MISSING_PACKAGES $1"
}

# at_least HAVE WANT: compares dotted version numbers.
at_least() {
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# as_root COMMAND...: runs it as root, through sudo if this is another user.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        echo "error: '$*' needs root, and there is no sudo; run it as root, then try again" >&2
        return 1
    fi
}

# install_missing: installs what need() collected; does nothing if that is nothing.
install_missing() {
    [ -n "$MISSING_PACKAGES" ] || return 0
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "error: this system has no apt-get; install these (Debian's names) and try again:$MISSING_PACKAGES" >&2
        return 1
    fi
    echo "installing by apt-get:$MISSING_PACKAGES"
    as_root apt-get update -q
    # shellcheck disable=SC2086  # a list of package names, split on purpose
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $MISSING_PACKAGES
    MISSING_PACKAGES=""
}

POLICY=/usr/sbin/policy-rc.d
NEW_UNITS=""

# need_without_unit PACKAGE UNIT WHY: need, and the unit that comes with the package stays off.
need_without_unit() {
    need "$1" "$3"
    NEW_UNITS="$NEW_UNITS $2"
}

# Debian starts a freshly installed nginx, which would take port 80, and runs certbot twice a day.
# Nothing that is installed here is to start, now or at the next boot.
forbid_service_starts() {
    if [ ! -e "$POLICY" ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
        as_root chmod 755 "$POLICY"
        trap 'as_root rm -f "$POLICY"' EXIT
        trap 'exit 130' INT TERM
    fi
}

# Only what was not here before: somebody's own nginx stays as it is.
stop_installed() {
    if [ -d /run/systemd/system ]; then
        for unit in $NEW_UNITS; do
            as_root systemctl disable --now "$unit" >/dev/null 2>&1 || true
        done
    fi
}

# install_missing_without_units: install_missing, and no unit of need_without_unit is started.
install_missing_without_units() {
    [ -z "$NEW_UNITS" ] || forbid_service_starts
    install_missing
    stop_installed
}
