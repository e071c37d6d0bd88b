#!/usr/bin/env bash
# Installs the Cargo tools that `make lint` needs into $CACHE/tools, in their pinned versions.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

command -v cargo >/dev/null || fail "cargo is needed: https://rustup.rs"
only_one
have=$("$cache/tools/bin/cargo-deny" --version 2>/dev/null | cut -d ' ' -f 2) || true
[[ $have == "$CARGO_DENY_VERSION" ]] && exit 0
mkdir -p "$cache/tools"
cd "$repository"
with_progress "$cache/tools/cargo-deny.log" "building cargo-deny $CARGO_DENY_VERSION (about 5 minutes)" \
  cargo install --locked cargo-deny --version "$CARGO_DENY_VERSION" --root "$cache/tools"
