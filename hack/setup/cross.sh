#!/usr/bin/env bash
# Brings what builds programs for another architecture than this machine's: a C compiler, which links them, the C
# library and Rust's standard library. `cargo xtask kernels --arch` and `cargo xtask image --arch` call it.
#
#   cross.sh amd64|arm64      by Debian's names; nothing is done for this machine's own
set -euo pipefail
# shellcheck source=hack/setup/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

architecture=${1:-}
case $architecture in
  amd64) target=x86_64-unknown-linux-gnu compiler=x86_64-linux-gnu-gcc package=gcc-x86-64-linux-gnu ;;
  arm64) target=aarch64-unknown-linux-gnu compiler=aarch64-linux-gnu-gcc package=gcc-aarch64-linux-gnu ;;
  *) fail "usage: cross.sh amd64|arm64" ;;
esac
[[ $(rustc -vV | sed -n 's/^host: //p') != "$target" ]] || exit 0
only_one

install_compiler() {
  command -v "$compiler" >/dev/null && return
  local missing=("$package" "libc6-dev-$architecture-cross")
  command -v apt-get >/dev/null || fail "please install $compiler with its C library (Debian: ${missing[*]})"
  as_root true
  with_progress "$cache/packages.log" "apt-get update" as_root apt-get update --quiet
  with_progress "$cache/packages.log" "apt-get install ${missing[*]}" as_root env DEBIAN_FRONTEND=noninteractive \
    RUNLEVEL=1 apt-get install --yes --quiet --no-remove --no-install-recommends "${missing[@]}"
}

# A toolchain that is not rustup's brings its own.
add_target() {
  cd "$repository"
  [[ ! -d $(rustc --print sysroot)/lib/rustlib/$target/lib ]] || return 0
  say "adding Rust's standard library for $target"
  rustup target add "$target" >/dev/null 2>&1 ||
    fail "the Rust toolchain has no $target, and rustup could not add it"
}

install_compiler
add_target
