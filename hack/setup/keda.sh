#!/usr/bin/env bash
# Builds KEDA's operator and metrics adapter from their Go module into $CACHE/keda/bin, and puts their manifests beside
# them: for `cargo xtask test keda` alone. About 15 minutes on 2 cores the first time, nothing afterwards.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

module=$repository/hack/kubernetes/keda
to=$cache/keda

build() {
  cd "$module"
  local program
  for program in operator adapter; do
    "$go" build -mod=readonly -trimpath -v -ldflags "-s -w" -o "$to/bin/.$program" "github.com/kedacore/keda/v2/cmd/$program"
  done
  # By the names that the manifests have.
  mv "$to/bin/.operator" "$to/bin/keda"
  mv "$to/bin/.adapter" "$to/bin/keda-adapter"
}

# The module's folder is read-only, and kustomize wants the overlay beside it.
manifests() {
  rm -rf "$to/config" "$to/overlay"
  cp -r "$(cd "$module" && "$go" list -mod=readonly -m -f '{{.Dir}}' github.com/kedacore/keda/v2)/config" "$to/config"
  chmod -R u+w "$to/config"
  cp -r "$module/overlay" "$to/overlay"
}

only_one
version=$(cd "$module" && cat "$setup_dir/keda.sh" go.{mod,sum} tools.go overlay/* | sha256sum | cut -d ' ' -f 1)
is_done keda "$version" && [[ -x $to/bin/keda-adapter && -d $to/overlay ]] && exit 0
find_go
[[ -n $go ]] || fail "Go is needed to build KEDA: hack/setup/packages.sh installs it on Debian, elsewhere https://go.dev/dl"
mkdir -p "$to/bin"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-buildvcs=false
# KEDA names the Go that it needs; an older one fetches it as it does modules.
needed=$(sed -n 's/^go //p' "$module/go.mod")
if [[ $(printf '%s\n' "$needed" "$("$go" env GOVERSION | tr -d go)" | sort --version-sort | head -n 1) != "$needed" ]]; then
  export GOTOOLCHAIN="go$needed"
fi
with_progress "$to/build.log" "building KEDA" build
manifests
done_with keda "$version"
say "$to is complete"
