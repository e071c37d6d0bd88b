#!/usr/bin/env bash
# Installs the programs that come from the distribution: what a node of the test cluster runs on, and
# what tests and benches compare with. Debian and its kin by apt; elsewhere it lists what is missing.
# It removes no package and leaves no service running that was not.
#
#   packages.sh          what set-up, tests, demo and the bench of reaction times need
#   packages.sh bench    what only `cargo xtask bench accuracy` and `overhead` need, in addition
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Programs and the Debian packages that have them. Programs are looked for, not packages: with docker's
# own packages containerd is there under another package's name.
build=(cc:gcc c++:g++ ld:binutils git:git curl:curl)
node=(
  containerd:containerd ctr:containerd runc:runc ptp:containernetworking-plugins
  iptables:iptables ipset:ipset conntrack:conntrack socat:socat ethtool:ethtool
  ip:iproute2 nsenter:util-linux unshare:util-linux setsid:util-linux
)
# What tests and benches compare with.
peers=(
  runqlat:libbpf-tools wrk:wrk hey:hey nginx:nginx-light h2load:nghttp2-client openssl:openssl python3:python3
  node:nodejs redis-server:redis-server redis-benchmark:redis-tools postgres:postgresql pgbench:postgresql
  setpriv:util-linux
)
# More servers and clients, with which only the benches on this host's kernel compare.
bench=(
  "${peers[@]}" nghttpd:nghttp2-server
  ip:iproute2 ethtool:ethtool
)
# Services that come with those packages and that we never want.
services=(containerd nginx redis-server postgresql)
places=$PATH:/usr/sbin:/sbin:/usr/local/sbin:/usr/lib/cni:/opt/cni/bin:/usr/libexec/cni

is_there() {
  # PostgreSQL's server lies in a directory of its version, which may have just been installed.
  local place all=$places
  for place in /usr/lib/postgresql/*/bin; do all+=:$place; done
  [[ -n $(PATH=$all type -P "$1") ]]
}

# find_missing PAIR...: sets missing_programs and missing_packages.
find_missing() {
  missing_programs=() missing_packages=()
  local pair
  for pair in "$@"; do
    is_there "${pair%%:*}" && continue
    missing_programs+=("${pair%%:*}")
    [[ " ${missing_packages[*]} " == *" ${pair#*:} "* ]] || missing_packages+=("${pair#*:}")
  done
  find_go
  [[ -n $go ]] || missing_programs+=("go >= $GO_MINIMUM")
}

has_systemd() { [[ -d /run/systemd/system ]]; }

# Debian has several versions of Go side by side; the newest is taken.
add_go() {
  [[ -n $go ]] && return
  local package
  package=$(apt-cache search --names-only '^golang-1\.[0-9]+-go$' | cut -d ' ' -f 1 | sort --version-sort | tail -n 1)
  [[ -n $package && $(printf '%s\n' "golang-$GO_MINIMUM-go" "$package" | sort --version-sort | head -n 1) == "golang-$GO_MINIMUM-go" ]] ||
    fail "no Go >= $GO_MINIMUM in this distribution's packages: take it from https://go.dev/dl to /usr/local/go"
  missing_packages+=("$package")
}

install() {
  local new=() service
  if has_systemd; then
    for service in "${services[@]}"; do
      systemctl cat "$service.service" >/dev/null 2>&1 || new+=("$service.service")
    done
    # A masked service is not started by its package.
    ((${#new[@]} == 0)) || as_root systemctl mask --quiet --runtime "${new[@]}"
  fi
  local status=0
  # RUNLEVEL=1 tells packages to start nothing where there is no systemd.
  as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
    apt-get install --yes --quiet --no-remove --no-install-recommends "${missing_packages[@]}" || status=$?
  if ((${#new[@]})); then
    as_root systemctl unmask --quiet --runtime "${new[@]}"
    as_root systemctl disable --quiet "${new[@]}" || true
  fi
  return $status
}

only_one
case ${1:-} in
  '') wanted=("${build[@]}" "${node[@]}" "${peers[@]}") ;;
  bench) wanted=("${build[@]}" "${bench[@]}") ;;
  *) fail "usage: packages.sh [bench]" ;;
esac
find_missing "${wanted[@]}"
((${#missing_programs[@]})) || exit 0
say "missing: ${missing_programs[*]}"
if ! command -v apt-get >/dev/null; then
  say "no apt here; in Debian they are in ${missing_packages[*]}, and Go in golang-$GO_MINIMUM-go or newer"
  [[ ${1:-} == bench ]] && fail "please install: ${missing_programs[*]}"
  # Without the peers only some tests and benches fail; with docker the nodes are containers.
  has_docker && node=()
  find_missing "${build[@]}" "${node[@]}"
  ((${#missing_programs[@]} == 0)) || fail "please install: ${missing_programs[*]}"
  exit 0
fi
if ((EUID != 0)) && ! command -v sudo >/dev/null; then
  fail "run as root: apt-get install ${missing_packages[*]}"
fi
# Ask for the password now: the commands below have no terminal.
as_root true
with_progress "$cache/packages.log" "apt-get update" as_root apt-get update --quiet
add_go
with_progress "$cache/packages.log" "apt-get install ${missing_packages[*]}" install
find_missing "${wanted[@]}"
((${#missing_programs[@]} == 0)) || fail "still missing: ${missing_programs[*]}"
say "all packages are there"
