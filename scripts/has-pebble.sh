#!/bin/sh
# Exits 0 if a Pebble is there that the tests can use: one with renewal information (ARI), profiles
# and alreadyReplaced, which is 2.10 or newer. A binary that `go install` made does not know its own
# version, so its text is asked.
set -eu
pebble=$(command -v pebble)
command -v pebble-challtestsrv >/dev/null
grep -aq alreadyReplaced "$pebble"
