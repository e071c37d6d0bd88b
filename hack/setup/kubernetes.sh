#!/usr/bin/env bash
# Builds the programs of a Kubernetes node from Go modules into $CACHE/kubernetes/bin. The versions are
# those of hack/kubernetes/go.mod. About 9 minutes on 2 cores the first time, nothing afterwards. With the
# argument `kubectl` it builds that alone, for machines where kind makes the nodes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

modules=$repository/hack/kubernetes
bin=$cache/kubernetes/bin
stamp=kubernetes
programs=(kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl)

# build PROGRAM PACKAGE [LDFLAGS]: under another name first, so that nobody sees half a program.
build() {
  "$go" build -mod=readonly -trimpath -v -ldflags "-s -w ${3:-}" -o "$bin/.$1" "$2"
  mv "$bin/.$1" "$bin/$1"
}

build_kubernetes() {
  cd "$modules"
  local program version package=k8s.io/component-base/version
  version=$("$go" list -mod=readonly -m -f '{{.Version}}' k8s.io/kubernetes)
  local flags="-X $package.gitVersion=$version -X $package.gitMajor=1"
  flags+=" -X $package.gitMinor=$(cut -d . -f 2 <<<"$version")"
  for program in "${programs[@]}"; do
    build "$program" "k8s.io/kubernetes/cmd/$program" "$flags"
  done
  [[ $stamp == kubernetes ]] || return 0
  build etcd go.etcd.io/etcd/server/v3
  build pause ./pause
}

build_coredns() {
  cd "$modules/coredns"
  build coredns .
}

only_one
# The build depends on these files and on nothing else.
version=$(cd "$modules" && cat "$setup_dir/kubernetes.sh" {.,coredns}/go.{mod,sum} {pause,coredns}/main.go | sha256sum | cut -d ' ' -f 1)
is_done kubernetes "$version" && [[ -x $bin/coredns ]] && exit 0
if [[ ${1:-} == kubectl ]]; then
  stamp=kubectl programs=(kubectl)
  is_done kubectl "$version" && [[ -x $bin/kubectl ]] && exit 0
fi

find_go
[[ -n $go ]] || fail "Go >= $GO_MINIMUM is needed: on Debian the package golang-$GO_MINIMUM-go or newer (also in backports), elsewhere https://go.dev/dl"
mkdir -p "$bin"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-buildvcs=false
with_progress "$cache/kubernetes/build.log" "building ${programs[*]} with $("$go" env GOVERSION)" build_kubernetes
if [[ $stamp == kubernetes ]]; then
  with_progress "$cache/kubernetes/coredns.log" "building CoreDNS" build_coredns
fi
done_with "$stamp" "$version"
say "$bin is complete"
