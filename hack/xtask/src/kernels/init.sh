#!/bin/busybox sh
# The first process in the emulated machine: brings up what the kernel tests need, runs each of them by itself, and
# turns the machine off. Lines that begin with @@ are for `cargo xtask kernels`, which reads the console.
/bin/busybox --install -s /bin
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp RUST_BACKTRACE=1
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /tmp
mount -t tmpfs none /run
# Version 2 alone, as systemd mounts it.
mount -t cgroup2 none /sys/fs/cgroup
mount -t tracefs none /sys/kernel/tracing
mount -t bpf none /sys/fs/bpf
ln -s /proc/self/fd /dev/fd
ip link set lo up
# Before 5.11 maps count as locked memory.
ulimit -l unlimited
ulimit -n 65536
while read -r module; do
  insmod "/modules/$module" || echo "@@ note insmod $module failed"
done </modules/order
. /settings
echo "@@ up $(uname -r)"
# Below the floor there is one thing to test: that it is said.
oldest=$(printf '%s\n' "$FLOOR" "$(uname -r)" | sort -V | head -n 1)
reason=
[ "$oldest" = "$FLOOR" ] || reason="older than $FLOOR"
for binary in /tests/*; do
  program=$(basename "$binary")
  "$binary" --list --format terse 2>/dev/null | sed -n 's/: test$//p' >/tmp/names
  while read -r name; do
    case "$program::$name" in
    *"$FILTER"*) ;;
    *) continue ;;
    esac
    if [ "$program" = kernel_databases ]; then
      echo "@@ passed-over $program $name: PostgreSQL is too large to bring"
      continue
    fi
    if [ -n "$reason" ] && [ "$program" != kernel_floor ]; then
      echo "@@ passed-over $program $name: $reason"
      continue
    fi
    echo "@@ begin $program $name"
    timeout -s KILL "$LIMIT" "$binary" --exact "$name" </dev/null
    echo "@@ end $program $name $?"
  done </tmp/names
done
echo "@@ off"
poweroff -f
