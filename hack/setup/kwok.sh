#!/usr/bin/env bash
# Builds kwok, which plays kubelet for pods that do not run, into $CACHE/kubernetes/bin: for `cargo xtask bench watch`
# alone. Its version is that of hack/kubernetes/kwok/go.mod. About 2 minutes on 2 cores the first time.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

modules=$repository/hack/kubernetes/kwok
bin=$cache/kubernetes/bin

build() {
  cd "$modules"
  "$go" build -mod=readonly -trimpath -v -ldflags "-s -w" -o "$bin/.kwok" sigs.k8s.io/kwok/cmd/kwok
  mv "$bin/.kwok" "$bin/kwok"
}

only_one
version=$(cat "$setup_dir/kwok.sh" "$modules"/go.{mod,sum} | sha256sum | cut -d ' ' -f 1)
is_done kwok "$version" && [[ -x $bin/kwok ]] && exit 0
find_go
[[ -n $go ]] || fail "Go >= $GO_MINIMUM is needed: on Debian the package golang-$GO_MINIMUM-go or newer (also in backports), elsewhere https://go.dev/dl"
mkdir -p "$bin"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-buildvcs=false
with_progress "$cache/kubernetes/kwok.log" "building kwok" build
done_with kwok "$version"
