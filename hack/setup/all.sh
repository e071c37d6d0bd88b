#!/usr/bin/env bash
# Brings a fresh machine to where everything of this repository builds, runs and is tested. Everything
# it builds lies in $EBPF_SCALER_CACHE (default: .cache); a second run takes no time.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

bash "$setup_dir/packages.sh"
if has_docker; then
  # The nodes come with kind, as containers.
  bash "$setup_dir/kubernetes.sh" kubectl
  bash "$setup_dir/tools.sh" kind
else
  bash "$setup_dir/kubernetes.sh"
fi
bash "$setup_dir/bpf.sh"
bash "$setup_dir/tools.sh"
say "everything is there"
