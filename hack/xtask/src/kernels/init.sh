#!/bin/busybox sh
# The first process in the emulated machine: brings up what the kernel tests need, runs each of them as a process of
# its own, as many at a time as there are processors, and turns the machine off. Tests that share out a processor's
# time run one at a time, after the others. Lines that begin with @@ are for `cargo xtask kernels`, which reads the
# console.
/bin/busybox --install -s /bin
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp RUST_BACKTRACE=1
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /tmp
mount -t tmpfs none /run
# PostgreSQL's processes share memory there.
mkdir /dev/shm
mount -t tmpfs none /dev/shm
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

# choose PROGRAM...: writes their tests that are wanted, a line each, in order.
choose() {
  for program in "$@"; do
    binary=/tests/$program
    [ -e "$binary" ] || continue
    "$binary" --list --format terse 2>/dev/null | sed -n 's/: test$//p' >/tmp/names
    while read -r name; do
      case "$program::$name" in
      *"$FILTER"*) ;;
      *) continue ;;
      esac
      case "$program::$name" in
      kernel_tls::python_and_node* | kernel_tls::what_is_in_flight*) missing="Python or Node.js" ;;
      kernel_tls_go::* | kernel_tls_cost::what_a_go*) missing="the Go tool chain" ;;
      *) missing= ;;
      esac
      if [ -n "$missing" ]; then
        echo "@@ passed-over $program $name: $missing is too large to bring" >/dev/console
        continue
      fi
      if [ -n "$reason" ] && [ "$program" != kernel_floor ]; then
        echo "@@ passed-over $program $name: $reason" >/dev/console
        continue
      fi
      echo "$program $name"
    done </tmp/names
  done
}

# Takes the first line off the list; fails when there is none.
take() {
  flock 9
  read -r test </tmp/chosen
  got=$?
  sed -i 1d /tmp/chosen
  flock -u 9
  return $got
}

uptime_now() { cut -d ' ' -f 1 /proc/uptime; }

# work N: runs tests until there are none. What one says is shown when it has ended, in one piece.
work() {
  exec 9>/tmp/lock
  while take; do
    flock 9
    echo "@@ running $test"
    flock -u 9
    from=$(uptime_now)
    timeout -s KILL "$LIMIT" "/tests/${test% *}" --exact "${test#* }" </dev/null >"/tmp/said.$1" 2>&1 9>&-
    status=$?
    to=$(uptime_now)
    flock 9
    echo "@@ begin $test"
    cat "/tmp/said.$1"
    echo "@@ end $test $status $from $to"
    flock -u 9
  done
}

together=
for binary in /tests/*; do
  case " $ALONE " in
  *" ${binary##*/} "*) ;;
  *) together="$together ${binary##*/}" ;;
  esac
done
choose $together >/tmp/chosen
for worker in $(seq "$(nproc)"); do
  work "$worker" &
done
wait
choose $ALONE >/tmp/chosen
work 0
echo "@@ off"
poweroff -f
