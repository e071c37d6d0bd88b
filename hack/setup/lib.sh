# What the set-up scripts share; it is sourced. A script says what it does, does it once, and can be
# run again, or twice at the same time, without harm.
# shellcheck shell=bash

setup_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$setup_dir/../.." && pwd)
cache=${EBPF_SCALER_CACHE:-$repository/.cache}
script=$(basename "${BASH_SOURCE[1]:-$0}" .sh)
# shellcheck source=/dev/null
source "$setup_dir/versions.env"
mkdir -p "$cache"

# A line on standard error, with the seconds since the script's start.
say() { printf '[%4d s] %s: %s\n' "$SECONDS" "$script" "$*" >&2; }

# The same, and the end.
fail() {
  say "$*"
  exit 1
}

# Waits until no other run of this script is under way.
only_one() {
  exec 9>"$cache/.$script.lock"
  flock --nonblock 9 || { say "waiting for another run" && flock 9; }
}

# is_done NAME VERSION: whether this version was finished before.
is_done() { [[ -f $cache/.$1.done && $(<"$cache/.$1.done") == "$2" ]]; }

# done_with NAME VERSION
done_with() { printf '%s\n' "$2" >"$cache/.$1.done"; }

# with_progress LOG WHAT COMMAND...: runs a long command, with a sign of life each 15 s and its output
# in LOG; if it fails, the end of the log is shown.
with_progress() {
  local log=$1 what=$2 begun=$SECONDS
  shift 2
  say "$what"
  # In a process group of its own, so that Ctrl-C does not leave a part of it behind.
  set -m
  "$@" >"$log" 2>&1 </dev/null &
  local pid=$!
  set +m
  # shellcheck disable=SC2064
  trap "kill -- -$pid 2>/dev/null || true" EXIT
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.5
    if ((SECONDS - begun >= 15)); then
      begun=$SECONDS
      say "  still at it: $(tail -n 1 "$log" | cut -c 1-80)"
    fi
  done
  local status=0
  wait "$pid" || status=$?
  trap - EXIT
  if ((status)); then
    tail -n 30 "$log" >&2
    fail "$what: failed; the whole output is in $log"
  fi
}

# Whether kind can make clusters here; then nothing of a node is needed on this machine.
has_docker() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# Sets go to a Go that is new enough, or leaves it empty.
find_go() {
  local candidate version
  go=
  for candidate in "$(command -v go || true)" /usr/local/go/bin/go /usr/lib/go-*/bin/go; do
    [[ -x $candidate ]] || continue
    version=$("$candidate" env GOVERSION 2>/dev/null) || continue
    version=${version#go}
    if [[ $(printf '%s\n' "$GO_MINIMUM" "$version" | sort --version-sort | head -n 1) == "$GO_MINIMUM" ]]; then
      go=$candidate
      return
    fi
  done
}

as_root() {
  if ((EUID == 0)); then "$@"; else sudo ${CI:+--non-interactive} "$@"; fi
}

# private_apt DIRECTORY SUITE...: sets apt_options, with which apt-get and apt-cache read these suites of Debian
# and nothing else. The machine's own sources, lists and package states stay as they are. The mirror is the one
# that the machine trusts already; a suite that it does not have is passed over. With APT_ARCHITECTURE set, packages
# of that architecture.
private_apt() {
  local directory=$1 mirror suite
  shift
  command -v apt-get >/dev/null && command -v dpkg >/dev/null || fail "apt-get and dpkg are needed: run this on Debian"
  mirror=$(debian_mirror)
  [[ -n $mirror ]] || fail "no Debian mirror in the machine's apt sources"
  mkdir -p "$directory"/{lists,cache}/partial
  for suite in "$@"; do
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$mirror" "$suite"
  done >"$directory/sources.list"
  # What is installed here must not decide what is taken.
  : >"$directory/status"
  apt_options=(-qq -o "Dir::Etc::sourcelist=$directory/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$directory/lists" -o "Dir::State::status=$directory/status" -o "Dir::Cache=$directory/cache" -o APT::Sandbox::User=root)
  [[ -z ${APT_ARCHITECTURE:-} ]] ||
    apt_options+=(-o "APT::Architecture=$APT_ARCHITECTURE" -o "APT::Architectures::=$APT_ARCHITECTURE")
  apt-get "${apt_options[@]}" update
}

# unpack_packages TO PACKAGE[=VERSION]...: downloads packages as private_apt set it up and unpacks them below TO,
# running none of their scripts.
unpack_packages() {
  local to=$1 download package
  shift
  download=$(mktemp -d "$cache/download.XXXXXX")
  (cd "$download" && apt-get "${apt_options[@]}" download "$@") || fail "cannot download $*"
  mkdir -p "$to"
  for package in "$download"/*.deb; do
    dpkg -x "$package" "$to"
  done
  rm -rf "$download"
}

# The mirror that the machine already trusts, from either format of apt's sources.
debian_mirror() {
  { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | sed -n 's/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p'
    sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/*.sources 2>/dev/null
  } | grep -E '/debian/?$' | head -n 1 || true
}
