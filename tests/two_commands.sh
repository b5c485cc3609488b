#!/usr/bin/env bash
# Goal: the README's first command and its reverse work, also when repeated
# and after the daemon was killed.
# Method: mount.sh itself, with a store and a mount point of this script's own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "$(id -u)" != 0 ] || ! [ -w /dev/fuse ]; then
    echo "SKIPPED: two_commands.sh: no root or no /dev/fuse" >&2
    [ -z "${SNAPDISK_TEST_REQUIRE_ALL:-}" ]
    exit
fi

work=$(mktemp -d /var/tmp/snapdisk-test-XXXXXX)
mnt=$work/mnt store="$work/store 1" # mountinfo writes a space in another way
end() {
    ./mount.sh --unboot "$mnt" >/dev/null 2>&1 || true
    ./mount.sh --umount "$mnt" >/dev/null 2>&1 || umount -l "$mnt" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap end EXIT
fail() { echo "two_commands.sh: $*" >&2; exit 1; }
# What mount.sh says, in a variable, and whether it ended as it should.
says() { # says WANTED_STATUS WORDS ARGUMENT…
    local wanted=$1 words=$2 status=0 said
    shift 2
    said=$(./mount.sh "$@" 2>&1) || status=$?
    [ "$status" = "$wanted" ] || fail "mount.sh $*: status $status, expected $wanted: $said"
    [[ $said == *"$words"* ]] || fail "mount.sh $*: said '$said', expected '$words'"
}

says 0 "is mounted at $mnt" "$mnt" "$store"
command -v snapdisk >/dev/null || fail "snapdisk is not on the PATH"
mkdir "$mnt/web" && echo data >"$mnt/web/disk.img" && sync "$mnt/web/disk.img"
says 0 "already" "$mnt" "$store"
says 0 "already" "$mnt"
stat "$mnt" >/dev/null # the kernel remembers it when the daemon is gone
says 1 "another store" "$mnt" "$work/other"
[ ! -e "$work/other" ] || fail "a store was made in vain"

# The lock's file names the daemon.
kill -KILL "$(grep -o '[0-9]*' "$store/lock" | head -n 1)"
says 0 "is mounted at $mnt" "$mnt"
[ "$(cat "$mnt/web/disk.img")" = data ] || fail "the data is gone"
says 0 "" --umount "$mnt"
says 0 "nothing is mounted" --umount "$mnt"
! mountpoint -q "$mnt" || fail "it is still mounted"

# As a line of fstab has it.
mount -t snapdisk "$store" "$mnt" -o noatime,user
[ "$(cat "$mnt/web/disk.img")" = data ] || fail "the data is gone"
umount "$mnt"

# After every boot, if there is systemd: its unit is one that systemd takes.
says 0 "at every boot" --boot "$mnt" "$store"
unit=snapdisk-$(systemd-escape --path "$mnt").service
verified=$(systemd-analyze verify "/etc/systemd/system/$unit" 2>&1 | grep -F "$unit" || true)
[ -z "$verified" ] || fail "systemd says of the unit: $verified"
[ -L "/etc/systemd/system/multi-user.target.wants/$unit" ] || fail "it is not enabled"
[ "$(cat "$mnt/web/disk.img")" = data ] || fail "it is not mounted"
says 0 "at every boot" --boot "$mnt" "$store"
says 0 "" --unboot "$mnt"
[ ! -e "/etc/systemd/system/$unit" ] || fail "the unit is still there"
says 0 "nothing is mounted" --unboot "$mnt"
says 0 "" --umount "$mnt"
says 2 "usage" --boot
says 2 "usage" --umount
says 2 "usage"
echo "two_commands.sh: all as it should be"
