# shellcheck shell=bash
# What the steps of the benchmark share: printed commands, mounts that are
# ended whatever happens, figures. Sourced by run.sh, which sets work (a
# directory), unmount and lazily (a command and its option).
# shellcheck disable=SC2034,SC2154

# Prints a command.
show() { echo "+$(printf ' %q' "$@")"; }

# Prints a command, then runs it.
run() {
    show "$@"
    "$@"
}

# Runs a command, printed, and leaves its duration in TIMED_MS.
timed() {
    show "$@"
    local start=${EPOCHREALTIME/[.,]/}
    "$@"
    TIMED_MS=$(((${EPOCHREALTIME/[.,]/} - start) / 1000))
}

# figure NAME VALUE UNIT [least|most WANTED]; VALUE null: it was skipped.
figure() {
    local wanted=
    if [ $# = 5 ]; then wanted=", \"$4\": $5"; fi
    printf '{"name": "%s", "value": %s, "unit": "%s"%s}\n' "$1" "$2" "$3" "$wanted" >>"$work/results"
    echo "= $1: $2 $3"
}

skip() {
    echo "=== SKIPPED: $1 ($2)" >&2
    figure "$1" null "-"
}

# calculate EXPRESSION, by awk.
calculate() { awk "BEGIN { printf \"%.3f\", $1 }"; }

# Prints the median of its arguments.
median() { printf '%s\n' "$@" | sort -g | sed -n "$((($# + 1) / 2))p"; }

# Waits until a command succeeds; fails after $1 seconds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.02
    done
}

# --- what has to be undone, newest last
pids=() mounts=() loops=() groups=()
dirty_settings=

# start_daemon MNT COMMAND…: runs it in the background until MNT is mounted;
# its process is DAEMON_PID.
start_daemon() {
    local mnt=$1
    shift
    [ -e "$mnt" ] || mkdir -p "$mnt"
    show "$@"
    "$@" >>"$work/daemon.log" 2>&1 &
    DAEMON_PID=$!
    pids+=("$DAEMON_PID")
    mounts+=("$mnt")
    if ! wait_for 900 mounted_or_ended "$mnt" "$DAEMON_PID" || ! mountpoint -q "$mnt"; then
        echo "$mnt was not mounted; the daemon said:" >&2
        tail -n 20 "$work/daemon.log" >&2
        return 1
    fi
}

# Whether a job of this shell is over. Not by kill -0: the shell has let go
# of its number then, and another process may have it.
ended() { [[ " $(jobs -rp | tr '\n' ' ')" != *" $1 "* ]]; }

mounted_or_ended() { mountpoint -q "$1" || ended "$2"; }

# stop_daemon MNT PID: unmounts and waits until the daemon has ended.
stop_daemon() {
    show "${unmount[@]}" "$1"
    # What was closed just now may count as open for a moment.
    wait_for 20 "${unmount[@]}" "$1"
    wait "$2" || echo "the daemon of $1 ended with status $?" >&2
}

# Ends all that was started, gently first.
cleanup() {
    local status=$? i
    trap - EXIT INT TERM
    set +e
    if [ -n "$dirty_settings" ]; then restore_dirty_limit; fi
    for ((i = ${#mounts[@]} - 1; i >= 0; i--)); do
        # Not mountpoint(1): a mount whose daemon died is one, too.
        grep -qF " ${mounts[i]} " /proc/self/mountinfo || continue
        timeout 60 "${unmount[@]}" "${mounts[i]}" 2>/dev/null ||
            timeout 10 "${unmount[@]}" "$lazily" "${mounts[i]}"
    done
    for i in "${loops[@]}"; do losetup --detach "$i" 2>/dev/null; done
    for i in "${pids[@]}"; do
        wait_for 20 ended "$i" || kill -KILL "$i"
    done
    wait
    for i in "${groups[@]}"; do rmdir "$i" 2>/dev/null; done
    if [ "$status" != 0 ]; then
        echo "the benchmark ended with status $status; the daemons' last words:" >&2
        tail -n 5 "$work/daemon.log" >&2
    fi
    rm -rf --one-file-system "$work"
    exit "$status"
}

# --- looking at things
# The highest resident size of a process so far, in MiB.
peak_mib() { awk '/^VmHWM/ { printf "%.0f", $2 / 1024 }' "/proc/$1/status"; }

# CPU time of a process so far, in seconds.
cpu_seconds() { sed 's/.*) //' "/proc/$1/stat" | awk -v hz="$(getconf CLK_TCK)" '{ print ($12 + $13) / hz }'; }

snapshot_ready() { grep -qx 'state = "ready"' "$1/info.toml"; }

wait_ready() {
    wait_for 1800 snapshot_ready "$1" || {
        echo "$1 is not ready after half an hour:" >&2
        cat "$1/info.toml" >&2
        return 1
    }
}

# new_disk DIR SIZE
new_disk() {
    run mkdir "$1"
    run truncate -s "$2" "$1/disk.img"
}

limit_dirty_bytes() {
    dirty_settings="$(cat /proc/sys/vm/dirty_bytes) $(cat /proc/sys/vm/dirty_ratio)"
    run sysctl -q -w "vm.dirty_bytes=$1"
}

# Only one of the two is in force; setting it clears the other.
restore_dirty_limit() {
    local bytes ratio
    read -r bytes ratio <<<"$dirty_settings"
    if [ "$bytes" != 0 ]; then
        run sysctl -q -w "vm.dirty_bytes=$bytes"
    else
        run sysctl -q -w "vm.dirty_ratio=$ratio"
    fi
    dirty_settings=
}

# Makes a group below this shell's own that holds $1 bytes of memory and
# leaves its directory in GROUP; fails where that is not allowed.
memory_group() {
    local own
    if own=$(grep -m1 ':memory:' /proc/self/cgroup); then # version 1
        GROUP=/sys/fs/cgroup/memory${own#*:memory:}/snapdisk-bench-$$
        mkdir "$GROUP" 2>/dev/null || return 1
        groups+=("$GROUP")
        echo "$1" >"$GROUP/memory.limit_in_bytes"
    else
        # Version 2 has no memory limits below a group with processes in it
        # but the topmost.
        GROUP=/sys/fs/cgroup/snapdisk-bench-$$
        grep -qw memory /sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || return 1
        mkdir "$GROUP" 2>/dev/null || return 1
        groups+=("$GROUP")
        echo "$1" >"$GROUP/memory.max"
    fi
}
