#!/usr/bin/env bash
# Fetches Debian's kernels, and what boots them in an emulator, for `cargo xtask kernels`. Kernels are unpacked into
# $CACHE/kernels/RELEASE, never installed. Of another architecture than this machine's also the programs that the tests
# call, as a directory tree: $CACHE/kernels/arm64/{RELEASE,root}.
#
#   kernels.sh ARCHITECTURE KERNEL...
#
#   ARCHITECTURE   amd64 or arm64, by Debian's names
#   KERNEL         the beginning of a release (6.1, 6.12, 6.1.0-50), or `newest`
#
# On standard output, a line for each: KERNEL, its directory, its package. What was fetched once is kept; to get a
# newer build of it, remove its directory.
set -euo pipefail
# shellcheck source=hack/setup/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# From the oldest that is still on the mirrors to the newest there is.
suites=(bullseye bookworm bookworm-backports trixie trixie-backports sid)
kernels=$cache/kernels
# What the tests need and the kernel does not have built in: veth pairs, and iptables rules that lose packets.
# Names differ between versions; one that is missing shows as a failed test.
modules=(veth crc32c_generic nft_compat nft_counter xt_length xt_statistic iptable_filter)
# Where the programs that the tests call come from, for another architecture than this machine's.
guest=(busybox-static dash iproute2 iptables util-linux nginx-light wrk nghttp2-client libbpf-tools redis-server
  redis-tools postgresql)

install_emulator() {
  local missing=()
  command -v "$emulator" >/dev/null || missing+=("$emulator_package")
  [[ $architecture != "$own" || -x /bin/busybox ]] || missing+=(busybox-static)
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || fail "please install: ${missing[*]}"
  as_root true
  with_progress "$cache/packages.log" "apt-get update" as_root apt-get update --quiet
  with_progress "$cache/packages.log" "apt-get install ${missing[*]}" as_root env DEBIAN_FRONTEND=noninteractive \
    RUNLEVEL=1 apt-get install --yes --quiet --no-remove --no-install-recommends "${missing[@]}"
}

# The programs for another architecture, with all that they depend on: as if installed, but only unpacked.
fetch_guest() {
  root=$kernels/root
  [[ -f $root.done && $(<"$root.done") == "${guest[*]}" ]] && return
  say "fetching the programs that the tests call, for $architecture"
  local suite packages
  suite=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-bookworm}")
  private_apt "$kernels/apt-root" "$suite"
  mapfile -t packages < <(apt-get "${apt_options[@]}" -o APT::Install-Recommends=false --simulate install \
    "${guest[@]}" | awk '$1 == "Inst" {print $2}')
  ((${#packages[@]})) || fail "cannot tell what ${guest[*]} depend on"
  rm -rf "$root"
  unpack_packages "$root" "${packages[@]}"
  rm -rf "$kernels/apt-root"
  printf '%s\n' "${guest[*]}" >"$root.done"
}

# read_suites: once a run, and only if a kernel is missing.
read_suites() {
  [[ -n ${releases:-} ]] && return
  say "reading Debian's lists of packages"
  private_apt "$kernels/apt" "${suites[@]}"
  releases=$(apt-cache "${apt_options[@]}" search --names-only "^linux-image-[0-9].*-$flavour\$" |
    sed 's/^linux-image-\([^ ]*\) .*/\1/' | sort --version-sort)
  [[ -n $releases ]] || fail "the mirror has no linux-image-*-$flavour"
}

# fetch KERNEL: sets directory.
fetch() {
  directory=$kernels/$1
  [[ -f $directory/package ]] && return
  read_suites
  local release version package packages=() unpacked=$kernels/unpacked
  if [[ $1 == newest ]]; then
    release=$(tail -n 1 <<<"$releases")
  else
    release=$(awk -v v="$1" 'index($0, v) == 1 && substr($0, length(v) + 1, 1) !~ /[0-9]/' <<<"$releases" | tail -n 1)
  fi
  [[ -n $release ]] || fail "no kernel $1 on the mirror; there are: $(cut -d . -f 1,2 <<<"$releases" | sort -uV | tr '\n' ' ')"
  version=$(apt-cache "${apt_options[@]}" madison "linux-image-$release" | awk '{print $3; exit}')
  say "fetching linux-image-$release $version"
  # Since 7.3 the image's package only depends on those that have the files.
  for package in "linux-image-$release" "linux-binary-$release" "linux-modules-$release"; do
    [[ -z $(apt-cache "${apt_options[@]}" madison "$package") ]] || packages+=("$package=$version")
  done
  rm -rf "$unpacked" "$directory"
  unpack_packages "$unpacked" "${packages[@]}"
  mkdir -p "$directory/modules"
  cp "$(find "$unpacked" -name "vmlinuz-$release" -o -name vmlinuz | head -n 1)" "$directory/vmlinuz"
  : >"$directory/modules/order"
  for package in "${modules[@]}"; do
    take_module "$package"
  done
  printf '%s %s\n' "linux-image-$release" "$version" >"$directory/package"
  rm -rf "$unpacked"
}

# take_module NAME: it and what it depends on, in the order in which they are to be loaded.
take_module() {
  local name=${1//-/_} file to dependency
  to=$directory/modules/$name.ko
  [[ ! -e $to ]] || return 0
  file=$(find "$unpacked" -name "$name.ko*" -o -name "${name//_/-}.ko*" | head -n 1)
  case $file in
    '') return 0 ;;
    *.xz) xz --decompress --stdout "$file" >"$to" ;;
    *.zst) zstd --quiet --decompress --stdout "$file" >"$to" ;;
    *) cp "$file" "$to" ;;
  esac
  for dependency in $(tr '\0' '\n' <"$to" | LC_ALL=C sed -n 's/^depends=//p' | tr ',' ' '); do
    take_module "$dependency"
  done
  printf '%s.ko\n' "$name" >>"$directory/modules/order"
}

architecture=${1:-}
(($# >= 1)) && shift
own=$(uname -m | sed 's/^x86_64$/amd64/; s/^aarch64$/arm64/')
case $architecture in
  amd64) emulator=qemu-system-x86_64 emulator_package=qemu-system-x86 ;;
  arm64) emulator=qemu-system-aarch64 emulator_package=qemu-system-arm ;;
  *) fail "usage: kernels.sh amd64|arm64 KERNEL..." ;;
esac
# The build for virtual machines: the same kernel with fewer drivers.
flavour=cloud-$architecture
[[ $architecture == "$own" ]] || kernels=$kernels/$architecture
export APT_ARCHITECTURE=$architecture

mkdir -p "$kernels"
only_one
install_emulator
[[ $architecture == "$own" ]] || fetch_guest
for kernel in "$@"; do
  fetch "$kernel"
  printf '%s\t%s\t%s\n' "$kernel" "$directory" "$(<"$directory/package")"
done
rm -rf "$kernels/apt"
