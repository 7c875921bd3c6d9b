#!/bin/sh
# Checks the dependency tree against deny.toml. Bans, licences and sources always; known
# vulnerabilities whenever their database can be fetched, which needs access to GitHub.
set -eu
cd "$(dirname "$0")/.."

# A database that does not answer is given up after this long.
FETCH_SECONDS=120

# Duplicate versions are worth a look now and then (`cargo deny check bans`), not at every run.
cargo deny --locked check --hide-inclusion-graph --allow duplicate bans licenses sources

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if GIT_TERMINAL_PROMPT=0 timeout "$FETCH_SECONDS" cargo deny --locked fetch db >"$log" 2>&1; then
    cargo deny --locked check --disable-fetch advisories
else
    cat "$log" >&2
    cat >&2 <<'EOF'

*********************************************************************************************
*  The RustSec advisory database could not be fetched (see above): known vulnerabilities
*  in the dependencies were NOT checked. Run `cargo deny check advisories` where it can be.
*********************************************************************************************

EOF
fi
