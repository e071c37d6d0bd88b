#!/usr/bin/env bash
# Installs tools into $CACHE/tools, in their pinned versions: the Cargo tools that `make lint` needs, or
# with the argument `kind` that one, for machines with docker.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

only_one
mkdir -p "$cache/tools/bin"
if [[ ${1:-} == kind ]]; then
  is_done kind "$KIND_VERSION" && [[ -x $cache/tools/bin/kind ]] && exit 0
  find_go
  [[ -n $go ]] || fail "neither kind nor a Go >= $GO_MINIMUM to build it: https://kind.sigs.k8s.io or https://go.dev/dl"
  with_progress "$cache/tools/kind.log" "building kind $KIND_VERSION" \
    env GOBIN="$cache/tools/bin" "$go" install "sigs.k8s.io/kind@$KIND_VERSION"
  done_with kind "$KIND_VERSION"
  exit 0
fi

command -v cargo >/dev/null || fail "cargo is needed: https://rustup.rs"
have=$("$cache/tools/bin/cargo-deny" --version 2>/dev/null | cut -d ' ' -f 2) || true
[[ $have == "$CARGO_DENY_VERSION" ]] && exit 0
cd "$repository"
with_progress "$cache/tools/cargo-deny.log" "building cargo-deny $CARGO_DENY_VERSION (about 5 minutes)" \
  cargo install --locked cargo-deny --version "$CARGO_DENY_VERSION" --root "$cache/tools"
