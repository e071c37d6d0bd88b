#!/usr/bin/env bash
# Builds the test that compares `operator replay` with the HPA controller of Kubernetes into
# $CACHE/kubernetes/differential.test. After kubernetes.sh it takes seconds, as both share Go's cache; without
# (where docker makes the nodes) about 3 minutes the first time.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

modules=$repository/hack/kubernetes
binary=$cache/kubernetes/differential.test

build() {
  cd "$modules"
  # Flags as in kubernetes.sh, for the cache's sake.
  "$go" test -c -mod=readonly -trimpath -vet=off -o "$binary.new" ./differential
  mv "$binary.new" "$binary"
}

only_one
version=$(cd "$modules" && cat "$setup_dir/differential.sh" go.{mod,sum} differential/*.go | sha256sum | cut -d ' ' -f 1)
is_done differential "$version" && [[ -x $binary ]] && exit 0
find_go
[[ -n $go ]] || fail "Go >= $GO_MINIMUM is needed to build the HPA controller that decisions are compared with: hack/setup/packages.sh installs it on Debian, elsewhere https://go.dev/dl"
mkdir -p "$cache/kubernetes"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-buildvcs=false
# Virtual time (testing/synctest) came with Go 1.25; an older Go fetches a newer one as it does modules.
if [[ $(printf '%s\n' 1.25 "$("$go" env GOVERSION | tr -d go)" | sort --version-sort | head -n 1) != 1.25 ]]; then
  export GOTOOLCHAIN=go1.25.0
fi
with_progress "$cache/kubernetes/differential.log" "building the HPA controller's test" build
done_with differential "$version"
