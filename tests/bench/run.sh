#!/usr/bin/env bash
# Measures snapdisk, against a bare FUSE daemon where that tells something.
#
# usage: tests/bench/run.sh [--quick] [--dir DIR] [--out FILE] [STEP…]
#   --quick     smaller, shorter, fewer jobs: under 10 minutes
#   --dir DIR   where the store and all files go, on a disk (default /var/tmp)
#   --out FILE  the figures as JSON (default target/bench.json)
#   STEP        of: fio pause steady reflink clone seal delete mount idle rebuild
#               loop threads scale (default all)
# With SNAPDISK and BARE in the environment those binaries are measured and
# nothing is built.
#
# One daemon with default settings serves the steps from fio to idle; the
# others have one each. Nothing else should run meanwhile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=tests/bench/lib.sh
. tests/bench/lib.sh

quick='' parent=/var/tmp out='' steps=()
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=1 ;;
        --dir) parent=$2 && shift ;;
        --out) out=$(realpath -m "$2") && shift ;;
        fio | pause | steady | reflink | clone | seal | delete | mount | idle | rebuild | loop | threads | scale) steps+=("$1") ;;
        *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
    shift
done
[ ${#steps[@]} -gt 0 ] || steps=(fio pause steady reflink clone seal delete mount idle rebuild loop threads scale)
# normal or quick
pick() { if [ -n "$quick" ]; then echo "$2"; else echo "$1"; fi; }

if [ "$(id -u)" = 0 ]; then
    unmount=(umount) lazily=-l
else
    unmount=(fusermount3 -u) lazily=-z
fi
case $(stat -f -c %T "$parent") in
    tmpfs | ramfs) echo "$parent is in memory: choose a directory on a disk with --dir" >&2 && exit 1 ;;
esac

cargo_dir=$(./mount.sh --install-only fio e2fsprogs fuse3 mount procps python3 qemu-utils util-linux \
    xfsprogs zstd)
export PATH=$cargo_dir:$PATH:/usr/sbin:/sbin
if [ -z "${SNAPDISK:-}" ] || [ -z "${BARE:-}" ]; then
    run cargo build --release --locked --bins --example bare
fi
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
snapdisk=${SNAPDISK:-$target/release/snapdisk} bare=${BARE:-$target/release/examples/bare}
out=${out:-$target/bench.json}

work=$(mktemp -d "$(realpath "$parent")/snapdisk-bench.XXXXXX")
touch "$work/results" "$work/daemon.log"
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mnt=$work/mnt
MIB=$((1 << 20))

# The same fio jobs on a plain file, a daemon that does nothing but pread and
# pwrite (with and without the kernel's writeback cache), a qcow2 image that
# qemu exports, and snapdisk's disks: one just written, one that is all
# sealed, one of which a snapshot is taken every 5 seconds, one with many.
step_fio() {
    local bytes seconds bare_pid cached_pid qemu_pid targets=() kinds=(fresh sealed) kind target many=512
    bytes=$(pick 4 1) seconds=$(pick 2 500ms)
    bytes=$((bytes << 30))
    run truncate -s $((2 * bytes)) "$work/raw.img" "$work/bare.img" "$work/cached.img"
    run qemu-img create -q -f qcow2 "$work/disk.qcow2" $((2 * bytes))
    start_daemon "$work/bare" "$bare" "$work/bare.img" "$work/bare"
    bare_pid=$DAEMON_PID
    targets=("raw=$work/raw.img" "bare=$work/bare/disk.img" "qcow2=$work/exported.img"
        "fresh=$mnt/fresh/disk.img" "sealed=$mnt/sealed/disk.img")
    # The quick run leaves out what step_steady shows, too.
    if [ -z "$quick" ]; then
        kinds+=(snapshots many)
        start_daemon "$work/cached" "$bare" "$work/cached.img" "$work/cached" writeback
        cached_pid=$DAEMON_PID
        targets+=("cached=$work/cached/disk.img" "snapshots=$mnt/snapshots/disk.img" "many=$mnt/many/disk.img")
    fi
    touch "$work/exported.img"
    start_daemon "$work/exported.img" qemu-storage-daemon \
        --blockdev "node-name=file,driver=file,filename=$work/disk.qcow2,aio=threads" \
        --blockdev node-name=disk,driver=qcow2,file=file \
        --export "type=fuse,id=export,node-name=disk,mountpoint=$work/exported.img,writable=on"
    qemu_pid=$DAEMON_PID
    for kind in "${kinds[@]}"; do new_disk "$mnt/$kind" $((2 * bytes)); done
    for target in "${targets[@]}"; do fill "${target#*=}" "$bytes"; done
    [ -n "$quick" ] || many_snapshots "$mnt/many" "$many" "$bytes"
    run mkdir "$mnt/sealed/.snapshots/all"
    wait_ready "$mnt/sealed/.snapshots/all"
    run tests/bench/fio.py ${quick:+--quick} "$bytes" "$seconds" 3 "$work/results" "${targets[@]}"
    figure "VmHWM of the bare daemon after fio" "$(peak_mib "$bare_pid")" MiB
    figure "VmHWM of qemu-storage-daemon after fio" "$(peak_mib "$qemu_pid")" MiB
    stop_daemon "$work/bare" "$bare_pid"
    [ -n "$quick" ] || stop_daemon "$work/cached" "$cached_pid"
    run kill -TERM "$qemu_pid" # which unmounts
    wait "$qemu_pid"
    rm "$work"/{raw,bare,cached}.img "$work/disk.qcow2"
    for kind in "${kinds[@]}"; do run truncate -s 0 "$mnt/$kind/disk.img"; done
}

# The longest call of a writer in which nothing happens, as much is written
# to another file and synced, the image is synced, and a snapshot is taken;
# each with 1 GiB written just before. A machine whose disk is busy stops by
# itself now and then (a hypervisor's quota, say), so a snapshot, which has
# all of that synced, is held against as much I/O beside the mount.
step_pause() {
    local label size disk what round writer figures longest mkdirs=() fresh
    local sizes=("1 GiB" "1 TiB") whats=(nothing beside fsync snapshot)
    fresh=$(pick 1024 256)
    if [ -n "$quick" ]; then sizes=("1 TiB") whats=(nothing beside snapshot); fi
    local -A worst middle
    run dd if=/dev/urandom of="$work/fresh" bs=1M count="$fresh" status=none
    for label in "${sizes[@]}"; do
        size=${label% GiB} && size=${size% TiB}
        case $label in *GiB) size=${size}G ;; *) size=${size}T ;; esac
        disk=$mnt/pause-$size
        new_disk "$disk" "$size"
        mkdirs=()
        for what in "${whats[@]}"; do
            longest=()
            for round in 1 2 3; do
                run dd if="$work/fresh" of="$disk/disk.img" bs=1M conv=notrunc status=none
                show tests/bench/writer.py "$disk/disk.img" "$(pick 8 4)"
                tests/bench/writer.py "$disk/disk.img" "$(pick 8 4)" >"$work/writer" &
                writer=$!
                sleep 1
                case $what in
                    beside)
                        run dd if="$work/fresh" of="$work/beside" bs=1M conv=fsync status=none ;;
                    fsync) timed sync "$disk/disk.img" ;;
                    snapshot)
                        timed mkdir "$disk/.snapshots/pause-$round"
                        mkdirs+=("$TIMED_MS") ;;
                esac
                wait "$writer"
                if [ $what = snapshot ]; then wait_ready "$disk/.snapshots/pause-$round"; fi
                figures=$(cat "$work/writer")
                echo "  with $what: $figures (writes, longest ms, 99.9 % ms)"
                longest+=("$(cut -d' ' -f2 <<<"$figures")")
            done
            middle[$what]=$(median "${longest[@]}")
            worst[$what]=$(printf '%s\n' "${longest[@]}" | sort -g | tail -n 1)
            figure "$label disk, longest write with $what, median of 3" "${middle[$what]}" ms
            figure "$label disk, longest write with $what, worst of 3" "${worst[$what]}" ms
        done
        figure "$label disk, pause from mkdir beyond that with as much written beside, medians" \
            "$(calculate "${middle[snapshot]} - ${middle[beside]}")" ms most 20
        figure "$label disk, pause from mkdir beyond that with nothing, medians" \
            "$(calculate "${middle[snapshot]} - ${middle[nothing]}")" ms
        figure "$label disk, mkdir of a snapshot, median of 3" "$(median "${mkdirs[@]}")" ms
    done
    rm -f "$work/fresh" "$work/beside"
}

# Clone and rollback of 100 GiB that has data here and there.
step_clone() {
    local gib disk=$mnt/big kind packs_before packs_after
    new_disk "$disk" 100G
    for gib in 0 20 40 60 80 99; do
        run dd if=/dev/urandom of="$disk/disk.img" bs=1M count="$(pick 170 40)" \
            seek=$((gib * 1024 + 3)) conv=notrunc status=none
    done
    run mkdir "$disk/.snapshots/origin"
    for kind in unsealed sealed; do
        if [ $kind = sealed ]; then wait_ready "$disk/.snapshots/origin"; fi
        grep -E '^(state|progress)' "$disk/.snapshots/origin/info.toml"
        packs_before=$(du -s --block-size=1K "$store/packs" | cut -f1)
        run mkdir "$mnt/clone-$kind"
        timed cp "$disk/.snapshots/origin/disk.img" "$mnt/clone-$kind/disk.img"
        packs_after=$(du -s --block-size=1K "$store/packs" | cut -f1)
        figure "clone of 100 GiB by cp, $kind" "$TIMED_MS" ms most 1000
        if [ $kind = sealed ]; then
            figure "growth of the packs by that clone" $((packs_after - packs_before)) KiB
        fi
        run cmp -n $((256 * MIB)) "$disk/.snapshots/origin/disk.img" "$mnt/clone-$kind/disk.img"
        run dd if=/dev/urandom of="$disk/disk.img" bs=1M count=16 seek=100 conv=notrunc,fsync status=none
        timed "$snapdisk" rollback "$disk" origin
        figure "rollback of 100 GiB, $kind" "$TIMED_MS" ms most 1000
        run cmp -n $((256 * MIB)) "$disk/.snapshots/origin/disk.img" "$disk/disk.img"
    done
}

# Sealing against zstd on the same bytes.
step_seal() {
    local bytes round piece disk=$mnt/seal zstd_ms=() seal_ms=() all_ms=() again_ms=() mkdir_ms
    echo "+ tar -c /usr/lib | head -c 1G >corpus"
    { tar -c -C / usr/lib 2>/dev/null || true; } | head -c 1G >"$work/corpus"
    bytes=$(stat -c %s "$work/corpus")
    new_disk "$disk" 4G
    for round in 1 2 3; do
        timed zstd -1 -T2 -q -f "$work/corpus" -o "$work/corpus.zst"
        zstd_ms+=("$TIMED_MS")
        # A block further each time: no chunk is as the last round's was.
        run dd if="$work/corpus" of="$disk/disk.img" bs=4K seek="$round" conv=notrunc,fsync status=none
        timed mkdir "$disk/.snapshots/seal-$round"
        mkdir_ms=$TIMED_MS
        timed wait_ready "$disk/.snapshots/seal-$round"
        seal_ms+=("$TIMED_MS")
        all_ms+=($((TIMED_MS + mkdir_ms)))
    done
    figure "zstd -1 -T2" "$(calculate "$bytes / $MIB / ($(median "${zstd_ms[@]}") / 1000)")" MiB/s
    figure "sealing, from mkdir's return" "$(calculate "$bytes / $MIB / ($(median "${seal_ms[@]}") / 1000)")" MiB/s
    figure "sealing, mkdir included" "$(calculate "$bytes / $MIB / ($(median "${all_ms[@]}") / 1000)")" MiB/s
    figure "sealing against zstd -1 -T2" \
        "$(calculate "$(median "${zstd_ms[@]}") / $(median "${all_ms[@]}")")" x least 0.8
    # A MiB in eight is changed, to what lies some blocks further.
    for round in 1 2 3; do
        echo "+ an eighth of $disk/disk.img is changed"
        for ((piece = 0; piece < bytes / MIB / 8; piece++)); do
            dd if="$work/corpus" of="$disk/disk.img" bs=4K count=256 conv=notrunc status=none \
                skip=$((piece * 2048 + 5 + round)) seek=$((piece * 2048))
        done
        run sync "$disk/disk.img"
        run mkdir "$disk/.snapshots/again-$round"
        timed wait_ready "$disk/.snapshots/again-$round"
        again_ms+=("$TIMED_MS")
    done
    figure "sealing it again with an eighth changed" "$(median "${again_ms[@]}")" ms
    figure "sealing that, against an eighth of sealing all" \
        "$(calculate "$(median "${again_ms[@]}") / ($(median "${seal_ms[@]}") / 8)")" x most 1.2
    # Read back when nothing of it is in memory, in one stream.
    if [ "$(id -u)" = 0 ]; then
        drop_caches
        timed dd if="$disk/.snapshots/seal-1/disk.img" of=/dev/null bs=1M count=$((bytes / MIB)) iflag=direct status=none
        figure "cold sequential read of a snapshot of it" "$(calculate "$bytes / $MIB / ($TIMED_MS / 1000)")" MiB/s
        figure "unpacking it on two cores, by zstd -b" "$(unpack_rate "$work/corpus")" MiB/s
    fi
    rm "$work/corpus" "$work/corpus.zst"
}

# What a writer at half speed notices of snapshots, and of having many.
step_steady() {
    local bytes kind many last
    bytes=$(pick 4 1) many=$(pick 512 64)
    bytes=$((bytes << 30))
    for kind in alone taken full; do
        new_disk "$mnt/steady-$kind" "$bytes"
        fill "$mnt/steady-$kind/disk.img" "$bytes"
    done
    many_snapshots "$mnt/steady-full" "$many" "$bytes"
    run tests/bench/steady.py "$bytes" "$(pick 60 15)" "$work/results" "$mnt"/steady-{alone,taken,full}
    last=$(newest_snapshot "$mnt/steady-taken")
    timed wait_ready "$last"
    figure "sealing what the load left behind" "$TIMED_MS" ms
    for kind in alone taken full; do run truncate -s 0 "$mnt/steady-$kind/disk.img"; done
}

# A snapshot beside a reflink of XFS, each of a file that somebody writes to
# at random places, again and again: what both copied before is shared.
step_reflink() {
    local bytes file device rounds round target longest=() took=() figures writer
    bytes=$(pick 4 1) rounds=$(pick 4 3)
    bytes=$((bytes << 30))
    if [ "$(id -u)" != 0 ]; then skip "reflink of XFS" "root only" && return; fi
    run truncate -s $((4 * bytes)) "$work/xfs.img"
    run mkfs.xfs -q -m reflink=1 "$work/xfs.img"
    show losetup --find --show --direct-io=on "$work/xfs.img"
    if ! device=$(losetup --find --show --direct-io=on "$work/xfs.img"); then
        skip "reflink of XFS" "no loop device" && return
    fi
    loops+=("$device")
    run mkdir "$work/xfs"
    run mount "$device" "$work/xfs"
    mounts+=("$work/xfs")
    run losetup --detach "$device" # as soon as it is unmounted
    new_disk "$mnt/reflink" "$bytes"
    for target in XFS snapdisk; do
        case $target in XFS) file=$work/xfs/disk.img ;; *) file=$mnt/reflink/disk.img ;; esac
        fill "$file" "$bytes"
        longest=() took=()
        for ((round = 1; round <= rounds; round++)); do
            run fio --name=scatter --filename="$file" --size="$bytes" --rw=randwrite --bs=4k --direct=1 \
                --ioengine=psync --fallocate=none --end_fsync=1 --number_ios="$(pick 60000 10000)" --output=/dev/null
            show tests/bench/writer.py "$file" "$(pick 8 4)"
            tests/bench/writer.py "$file" "$(pick 8 4)" >"$work/writer" &
            writer=$!
            sleep 2
            case $target in
                XFS) timed cp --reflink=always "$file" "$work/xfs/copy-$round" ;;
                *) timed mkdir "$mnt/reflink/.snapshots/copy-$round" ;;
            esac
            took+=("$TIMED_MS")
            wait "$writer"
            figures=$(cat "$work/writer")
            echo "  $target, round $round: $TIMED_MS ms; $figures (writes, longest ms, 99.9 % ms)"
            longest+=("$(cut -d' ' -f2 <<<"$figures")")
            if [ $target = snapdisk ]; then wait_ready "$mnt/reflink/.snapshots/copy-$round"; fi
        done
        figure "$target: copying under random writes, median of $rounds" "$(median "${took[@]}")" ms
        figure "$target: longest write meanwhile, median of $rounds" "$(median "${longest[@]}")" ms
    done
    run umount "$work/xfs"
    rm "$work/xfs.img"
    run truncate -s 0 "$mnt/reflink/disk.img"
}

# Deleting snapshots, and winning back what they took.
step_delete() {
    local disk=$mnt/delete i count took=() before after
    count=$(pick 64 16)
    new_disk "$disk" 4G
    for ((i = 1; i <= count; i++)); do
        dd if=/dev/urandom of="$disk/disk.img" bs=1M count=16 conv=notrunc status=none
        mkdir "$disk/.snapshots/$(printf 'd%03d' "$i")"
    done
    wait_ready "$disk/.snapshots/$(printf 'd%03d' "$count")"
    run "$snapdisk" gc "$mnt"
    before=$(du -s --block-size=1M "$store/packs" | cut -f1)
    for ((i = 1; i <= count; i++)); do
        timed rmdir "$disk/.snapshots/$(printf 'd%03d' "$i")"
        took+=("$TIMED_MS")
    done
    figure "rmdir of a snapshot, median of $count" "$(median "${took[@]}")" ms
    timed "$snapdisk" gc "$mnt"
    after=$(du -s --block-size=1M "$store/packs" | cut -f1)
    figure "gc afterwards" "$TIMED_MS" ms
    figure "won back by then" $((before - after)) MiB
}

# Mounting: after unmounting, and after SIGKILL with data that no fsync had
# acknowledged. This store has all that the steps before left in it.
step_mount() {
    local round clean=() killed=()
    new_disk "$mnt/mount" 4G
    for round in 1 2 3; do
        stop_daemon "$mnt" "$main_pid"
        timed start_daemon "$mnt" "$snapdisk" mount -f "$store" "$mnt"
        main_pid=$DAEMON_PID
        clean+=("$TIMED_MS")
        run dd if=/dev/urandom of="$mnt/mount/disk.img" bs=1M count=64 conv=notrunc,fsync status=none
        run dd if=/dev/urandom of="$mnt/mount/disk.img" bs=1M count=64 conv=notrunc status=none
        run kill -KILL "$main_pid"
        wait "$main_pid" || true
        run "${unmount[@]}" "$lazily" "$mnt"
        timed start_daemon "$mnt" "$snapdisk" mount -f "$store" "$mnt"
        main_pid=$DAEMON_PID
        killed+=("$TIMED_MS")
    done
    figure "mount after unmounting, median of 3" "$(median "${clean[@]}")" ms most 1000
    figure "mount after SIGKILL, median of 3" "$(median "${killed[@]}")" ms most 1000
    figure "MiB in the packs of that store" "$(du -s --block-size=1M "$store/packs" | cut -f1)" MiB
}

# What the daemon uses when nobody asks anything of it.
step_idle() {
    local seconds before info
    seconds=$(pick 60 20)
    for info in "$mnt"/*/.snapshots/*/info.toml; do
        if [ -e "$info" ]; then wait_ready "${info%/info.toml}"; fi
    done
    sleep 5
    before=$(cpu_seconds "$main_pid")
    run sleep "$seconds"
    figure "CPU time of $seconds s without work" \
        "$(calculate "$(cpu_seconds "$main_pid") - $before")" s most 0.1
}

# The index of many chunks made anew from the packs' directories.
step_rebuild() {
    local count mnt=$work/rebuild store=$work/rebuild.store pid
    count=$(pick 1048576 65536)
    run "$snapdisk" init --chunk-size 16K "$store"
    start_daemon "$mnt" "$snapdisk" mount -f "$store" "$mnt"
    pid=$DAEMON_PID
    new_disk "$mnt/many" $((count * 16384))
    run tests/bench/chunks.py write "$mnt/many/disk.img" "$count" 16384
    run mkdir "$mnt/many/.snapshots/all"
    timed wait_ready "$mnt/many/.snapshots/all"
    figure "sealing $count chunks" "$TIMED_MS" ms
    figure "VmHWM of the daemon that sealed them" "$(peak_mib "$pid")" MiB most 300
    stop_daemon "$mnt" "$pid"
    run rm -r "$store/index"
    timed start_daemon "$mnt" "$snapdisk" mount -f "$store" "$mnt"
    figure "mount with the index of $count chunks gone" "$TIMED_MS" ms
    run tests/bench/chunks.py check "$mnt/many/.snapshots/all/disk.img" "$count" 16384
    figure "VmHWM of the daemon that rebuilt it" "$(peak_mib "$DAEMON_PID")" MiB most 300
    stop_daemon "$mnt" "$DAEMON_PID"
    rm -rf "$store"
}

# ext4 on loop, the daemon short of memory, the system short of dirty pages.
step_loop() {
    local name mnt=$work/loop store=$work/loop.store inner=$work/inner pid device writer taker start
    name="ext4 on loop takes $(pick 2 1) GiB, 300 MiB and dirty_bytes of 64 MiB"
    if [ "$(id -u)" != 0 ]; then skip "$name" "root only" && return; fi
    if ! memory_group $((300 * MIB)); then skip "$name" "no memory group may be made" && return; fi
    run "$snapdisk" init "$store"
    # The shell that becomes the daemon moves itself into the group.
    # shellcheck disable=SC2016
    start_daemon "$mnt" sh -c 'echo $$ >"$0/cgroup.procs" && exec "$@"' "$GROUP" "$snapdisk" mount -f "$store" "$mnt"
    pid=$DAEMON_PID
    new_disk "$mnt/loop" 4G
    run mkfs.ext4 -q "$mnt/loop/disk.img"
    show losetup --find --show "$mnt/loop/disk.img"
    if ! device=$(losetup --find --show "$mnt/loop/disk.img"); then
        skip "$name" "no loop device"
        stop_daemon "$mnt" "$pid"
        return
    fi
    loops+=("$device")
    run mkdir "$inner"
    run mount -o discard "$device" "$inner"
    mounts+=("$inner")
    run losetup --detach "$device" # as soon as it is unmounted
    limit_dirty_bytes $((64 * MIB))
    start=$SECONDS
    run dd if=/dev/zero of="$inner/file" bs=1M count="$(pick 2048 1024)" conv=fsync status=none &
    writer=$!
    sleep 2
    run mkdir "$mnt/loop/.snapshots/busy" &
    taker=$!
    if wait_for 900 ended "$writer" && wait_for 60 ended "$taker" && wait "$writer" && wait "$taker"; then
        figure "$name" $((SECONDS - start)) s most 900
        restore_dirty_limit
        run umount "$inner"
        run e2fsck -fn "$mnt/loop/disk.img"
        figure "VmHWM of that daemon" "$(peak_mib "$pid")" MiB most 300
        stop_daemon "$mnt" "$pid"
        rm -rf "$store"
    else
        figure "$name" 1000000 "s (HANGS)" most 900
        restore_dirty_limit
        # Else nothing that hangs is ever answered, the end of this script
        # included. What is left over is unmounted then.
        if ! ended "$pid"; then run kill -KILL "$pid"; fi
    fi
}

# Eight of everything that takes long, served by one FUSE thread.
step_threads() {
    local mnt=$work/threads store=$work/threads.store i jobs=() finished=0 start
    run "$snapdisk" init "$store"
    start_daemon "$mnt" "$snapdisk" mount -f "$store" "$mnt"
    for i in 1 2 3 4 5 6 7 8; do
        new_disk "$mnt/d$i" 64M
        run dd if=/dev/urandom of="$mnt/d$i/disk.img" bs=1M count=64 conv=notrunc status=none
        run mkdir "$mnt/d$i/.snapshots/cold"
    done
    for i in 1 2 3 4 5 6 7 8; do wait_ready "$mnt/d$i/.snapshots/cold"; done
    stop_daemon "$mnt" "$DAEMON_PID"
    drop_caches
    start_daemon "$mnt" "$snapdisk" mount -f -o threads=1 "$store" "$mnt"
    start=$SECONDS
    for i in 1 2 3 4 5 6 7 8; do
        run dd if=/dev/zero of="$mnt/d$i/disk.img" bs=64K count=64 conv=notrunc,fsync status=none &
        jobs+=($!)
        run mkdir "$mnt/d$i/.snapshots/at-once" &
        jobs+=($!)
        run dd if="$mnt/d$i/.snapshots/cold/disk.img" of=/dev/null bs=1M status=none &
        jobs+=($!)
    done
    for i in "${jobs[@]}"; do
        if wait_for $((start + 120 - SECONDS)) ended "$i" && wait "$i"; then finished=$((finished + 1)); fi
    done
    figure "one FUSE thread: finished of 24 calls at once" "$finished" calls least 24
    figure "one FUSE thread: all of them took" $((SECONDS - start)) s
    if [ "$finished" != 24 ] && ! ended "$DAEMON_PID"; then run kill -KILL "$DAEMON_PID"; fi
    stop_daemon "$mnt" "$DAEMON_PID"
    rm -rf "$store"
}

# What grows with the size of a store, the snapshots of a disk and the disks:
# of a store of 1 GiB with one disk and one snapshot the same is measured as
# of one with 512 snapshots, one with 512 disks and one of many chunks.
step_scale() {
    local scale=${SCALE:-} count what value label mnt=$work/scale store=$work/scale.store
    local -A small=() snapshots=() disks=() large=()
    if [ -z "$scale" ]; then
        run cargo build --release --locked --example scale
        scale=$target/release/examples/scale
    fi
    run "$scale" "$store" 16384
    scale_figures small 16384
    show_scale "16384 chunks" small
    rm -rf "$store"
    run "$scale" "$store" 16384 512
    scale_figures snapshots 16384
    show_scale "512 snapshots" snapshots
    rm -rf "$store"
    run "$scale" "$store" 16384 1 512
    scale_figures disks 16384
    show_scale "512 disks" disks
    rm -rf "$store"
    count=$(pick 16777216 1048576)
    timed "$scale" "$store" "$count" 512
    figure "making a store of $count chunks and 512 snapshots" "$TIMED_MS" ms
    scale_figures large "$count"
    label="$count chunks and 512 snapshots"
    show_scale "$label" large
    # The few real chunks of a small store are all in memory: nothing to
    # hold this against.
    figure "$label: cold read of a chunk, median" "${large[read]}" us
    for what in known new mkdir; do
        case $what in
            known) value="sealing 512 MiB that is stored already" ;;
            new) value="sealing 512 MiB that is new" ;;
            mkdir) value="mkdir of a snapshot without fresh data" ;;
        esac
        figure "$label: $value, against 16384 chunks" "$(calculate "${large[$what]} / ${small[$what]}")" x most 1.1
    done
    run rm -r "$store/index"
    timed start_daemon "$mnt" "$snapdisk" mount -f "$store" "$mnt"
    figure "$label: mount with the index gone" "$TIMED_MS" ms
    figure "$label: VmHWM of the daemon that made it anew" "$(peak_mib "$DAEMON_PID")" MiB most 256
    stop_daemon "$mnt" "$DAEMON_PID"
    rm -rf "$store"
}

# show_scale LABEL ARRAY: what scale_figures filled in.
show_scale() {
    local -n seen=$2
    figure "$1: mount" "${seen[clean]}" ms most 1000
    figure "$1: mount after SIGKILL" "${seen[killed]}" ms most 1000
    # The cache of chunks, 48 MiB, is beside the 256.
    figure "$1: VmRSS after mounting" "${seen[mounted]}" MiB most 304
    figure "$1: VmHWM after reads and look-ups" "${seen[peak]}" MiB most 304
    figure "$1: sealing 512 MiB that is new, median" "${seen[new]}" us
    figure "$1: sealing 512 MiB that is stored already, median" "${seen[known]}" us
    figure "$1: mkdir of a snapshot without fresh data, median" "${seen[mkdir]}" us
}

# Fills the caller's array of that name with what a store of so many chunks
# shows: times in us but for those of mounting, in ms.
scale_figures() {
    local -n found=$1
    local real=$((($2 + 1499) / 1500)) pid round what times
    timed start_daemon "$mnt" "$snapdisk" mount -f "$store" "$mnt"
    found[clean]=$TIMED_MS pid=$DAEMON_PID
    run kill -KILL "$pid"
    wait "$pid" || true
    run "${unmount[@]}" "$lazily" "$mnt"
    timed start_daemon "$mnt" "$snapdisk" mount -f "$store" "$mnt"
    found[killed]=$TIMED_MS pid=$DAEMON_PID
    found[mounted]=$(awk '/^VmRSS/ { printf "%.0f", $2 / 1024 }' "/proc/$pid/status")
    new_disk "$mnt/looks" 512M
    for what in known new; do
        times=()
        for round in 1 2 3; do
            run tests/bench/deep.py "$what" "$mnt/looks/disk.img" "$real" 8192 "$round"
            run mkdir "$mnt/looks/.snapshots/$what-$round"
            timed wait_ready "$mnt/looks/.snapshots/$what-$round"
            times+=("$((TIMED_MS * 1000))")
        done
        found[$what]=$(median "${times[@]}")
    done
    times=()
    for round in 1 2 3 4 5 6 7 8 9; do
        times+=("$(tests/bench/deep.py mkdir "$mnt/looks/.snapshots/empty-$round")")
    done
    found[mkdir]=$(median "${times[@]}")
    drop_caches
    show tests/bench/deep.py read "$mnt/deep/.snapshots/s00000/disk.img" "$real" 3000
    found[read]=$(tests/bench/deep.py read "$mnt/deep/.snapshots/s00000/disk.img" "$real" 3000)
    found[peak]=$(peak_mib "$pid")
    stop_daemon "$mnt" "$pid"
}

# fill FILE BYTES: with data of which half compresses away.
fill() {
    run fio --name=fill --filename="$1" --size="$2" --rw=write --bs=1m --ioengine=psync --fallocate=none \
        --refill_buffers --buffer_compress_percentage=50 --end_fsync=1 --output=/dev/null
}

# Drops what the system has in memory of files, if that is allowed.
drop_caches() {
    sync
    if [ "$(id -u)" = 0 ]; then echo 3 >/proc/sys/vm/drop_caches; fi
}

# What two cores unpack of a file in pieces of 64 KiB, in MiB/s.
unpack_rate() {
    zstd -b1 -i1 -B65536 "$1" 2>&1 | tr '\r' '\n' |
        awk '/MB\/s.*MB\/s/ { n = split($0, f, ","); sub(/ *MB\/s.*/, "", f[n]); rate = f[n] }
             END { printf "%.0f", 2 * rate * 1e6 / 1048576 }'
}

# many_snapshots DISK COUNT BYTES: with one new block in each.
many_snapshots() {
    local i
    echo "+ $2 snapshots of $1"
    for ((i = 1; i <= $2; i++)); do
        dd if=/dev/urandom of="$1/disk.img" bs=4K count=1 conv=notrunc status=none seek=$((i * $3 / 4096 / ($2 + 1)))
        mkdir "$1/.snapshots/$(printf 's%04d' "$i")"
    done
    wait_ready "$(newest_snapshot "$1")"
}

newest_snapshot() { echo "$1/.snapshots/$(readlink "$1/.snapshots/latest")"; }

store=$work/store main_pid=
run "$snapdisk" init "$store"
start_daemon "$mnt" "$snapdisk" mount -f "$store" "$mnt"
main_pid=$DAEMON_PID
run "$snapdisk" set "$mnt" max_manual_snapshots=1024 max_snapshots=1024
for step in "${steps[@]}"; do
    echo "=== $step"
    step_start=$SECONDS
    "step_$step"
    echo "=== $step took $((SECONDS - step_start)) s"
    case $step in
        fio | pause | steady | clone | seal | delete) figure "VmHWM of the daemon after $step" "$(peak_mib "$main_pid")" MiB most 300 ;;
    esac
done
stop_daemon "$mnt" "$main_pid"
tests/bench/report.py "$work/results" "$out"
