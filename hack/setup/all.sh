#!/usr/bin/env bash
# Brings a fresh machine to where everything of this repository builds, runs and is tested. Everything
# it builds lies in $EBPF_SCALER_CACHE (default: .cache); a second run takes no time.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

for part in packages kubernetes bpf tools; do
  bash "$setup_dir/$part.sh"
done
say "everything is there"
