#!/usr/bin/env bash
# Brings the BPF toolchain (bpf-linker, the standard library's source) and builds ebpf/programs into
# $CACHE/bpf/programs.o. Safe to run again and in parallel; never changes the machine outside $CACHE, except
# for rustup's own component rust-src.
#
#   bpf.sh [ARCHITECTURE]   x86_64 or aarch64, if it is not this machine's: the object is then programs-ARCHITECTURE.o.
#                           Probes of other processes read their registers, which each architecture has its own of.
#
#   EBPF_SCALER_CACHE      where everything goes (default: <repository>/.cache)
#   EBPF_SCALER_RUST_SRC   rustup | debian: take the source from there only (default: the first that works)
set -euo pipefail

# shellcheck source=hack/setup/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
toolchain=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$repository/rust-toolchain.toml")
linker_version=0.10.4
linker_features=rust-llvm-22
architecture=${1:-$(uname -m)}
# Where the programs' object comes to lie; collector/build.rs looks there.
object=$cache/bpf/programs.o
if [[ $architecture != "$(uname -m)" ]]; then
  object=$cache/bpf/programs-$architecture.o
  # aya-ebpf's build script reads it; otherwise it takes the machine that builds.
  export AYA_BPF_TARGET_ARCH=$architecture
fi

mkdir -p "$cache/bpf" "$cache/tools"
only_one

install_linker() {
  local have
  have=$("$cache/tools/bin/bpf-linker" --version 2>/dev/null | awk '{print $2}') || true
  [[ $have == "$linker_version" ]] && return
  cd "$repository"
  with_progress "$cache/bpf/linker.log" "installing bpf-linker $linker_version into $cache/tools (2 minutes)" \
    cargo install bpf-linker --version "$linker_version" --locked \
    --no-default-features --features "$linker_features" --root "$cache/tools"
}

# Sets std_source to the directory that holds library/, or leaves it empty when the toolchain has its own.
find_std_source() {
  local sysroot
  sysroot=$(cd "$repository" && rustc --print sysroot)
  std_source=
  if [[ ${EBPF_SCALER_RUST_SRC:-rustup} == rustup ]]; then
    [[ -f $sysroot/lib/rustlib/src/rust/library/core/Cargo.toml ]] && return
    say "adding rustup's component rust-src for $toolchain"
    if command -v rustup >/dev/null &&
      timeout 120 rustup component add rust-src --toolchain "$toolchain" >/dev/null 2>&1 &&
      [[ -f $sysroot/lib/rustlib/src/rust/library/core/Cargo.toml ]]; then
      return
    fi
    [[ -n ${EBPF_SCALER_RUST_SRC:-} ]] && fail "rustup could not add rust-src for $toolchain"
    say "rustup can not be reached"
  fi
  debian_std_source
}

# Debian's package of the same version, read through an apt configuration of our own.
debian_std_source() {
  local to=$cache/rust-src/$toolchain apt=$cache/rust-src/apt version
  std_source=$to/usr/src/rustc-$toolchain
  [[ -f $std_source/library/core/Cargo.toml ]] && return
  say "fetching the package rust-src $toolchain from trixie-backports (45 MB); elsewhere: rustup component add rust-src"
  private_apt "$apt" trixie-backports
  version=$(apt-cache "${apt_options[@]}" madison rust-src | awk -v v="$toolchain+" 'index($3, v) == 1 {print $3; exit}')
  [[ -n $version ]] || fail "trixie-backports has no rust-src $toolchain; add it with rustup instead"
  unpack_packages "$to" "rust-src=$version"
  rm -rf "$apt"
  [[ -f $std_source/library/core/Cargo.toml ]] || fail "the package has no library/core below $std_source"
}

# What the object depends on: sources, manifests, the tools' versions.
fingerprint() {
  {
    printf '%s %s %s %s\n' "$toolchain" "$linker_version" "$linker_features" "${AYA_BPF_TARGET_ARCH:-}"
    cd "$repository/ebpf" && find common/src common/Cargo.toml programs/src programs/Cargo.toml programs/Cargo.lock \
      programs/.cargo/config.toml -type f -print0 | sort -z | xargs -0 sha256sum
  } | sha256sum | cut -d' ' -f1
}

build() {
  local want
  want=$(fingerprint)
  if [[ -f $object && -f $object.stamp && $(<"$object.stamp") == "$want" ]]; then
    return
  fi
  [[ -z $std_source ]] || export __CARGO_TESTS_ONLY_SRC_ROOT=$std_source/library
  # -Z build-std is not yet stable; the compiler is the pinned stable one all the same.
  export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$cache/bpf/target PATH=$cache/tools/bin:$PATH
  cd "$repository/ebpf/programs"
  with_progress "$cache/bpf/build.log" "building ebpf/programs (2 minutes the first time, then seconds)" \
    cargo build --release --locked
  cp "$cache/bpf/target/bpfel-unknown-none/release/programs" "$object.new"
  mv "$object.new" "$object"
  printf '%s\n' "$want" >"$object.stamp.new"
  mv "$object.stamp.new" "$object.stamp"
  say "built $object"
}

install_linker
find_std_source
build
