#!/bin/sh
# Runs a command as a container does: a root that cannot be written, a user that nobody knows, no
# home, process 1, and only /data writable. Made of namespaces alone; no container engine.
#
#   enter.sh ROOT DATA UID READABLE... -- COMMAND...
#
# ROOT is an empty folder, DATA becomes /data, READABLE are folders that stay where they are.
set -eu
root=$1 data=$2 uid=$3
shift 3

bind() { # a folder or file of this machine, at its own place, not to be written
    if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$root$(dirname "$1")"; touch "$root$1"; fi
    mount --bind "$1" "$root$1"
    mount -o remount,bind,ro "$root$1"
}

mount -t tmpfs -o mode=0755 container "$root"
for each in /usr /bin /sbin /lib /lib64 /etc/ssl /etc/ld.so.cache; do
    if [ -L "$each" ]; then ln -s "$(readlink "$each")" "$root$each"; elif [ -e "$each" ]; then bind "$each"; fi
done
while [ "$1" != -- ]; do bind "$1"; shift; done
shift
mkdir -p "$root/proc" "$root/dev" "$root/data" "$root/old"
: > "$root/etc/passwd"
for each in null zero urandom; do touch "$root/dev/$each"; mount --bind "/dev/$each" "$root/dev/$each"; done
mount -t proc proc "$root/proc"
mount --bind "$data" "$root/data"
mount --make-rprivate "$root"
cd "$root"
pivot_root . old
cd /
umount -l /old
mount -o remount,ro /
exec unshare --user --map-user="$uid" --map-group="$uid" "$@"
