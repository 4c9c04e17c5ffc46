#!/bin/busybox sh
# PID 1 of the initrd: the modules beside it, and then the host's root, read-only.
B=/bin/busybox
$B mount -t devtmpfs dev /dev
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
for module in /m/*; do $B insmod "$module" || echo "insmod $module failed"; done
OPTIONS=trans=virtio,version=9p2000.L,msize=262144
$B mount -t 9p -o ro,cache=loose,$OPTIONS root /new || { echo "no root by 9p"; $B poweroff -f; }
for folder in tmp run mnt var/lib var/log; do
    [ -d "/new/$folder" ] && $B mount -t tmpfs -o mode=1777 t "/new/$folder"
done
$B mount -t 9p -o rw,cache=none,$OPTIONS work /new/mnt || echo "no folder to write to"
for folder in dev proc sys; do $B mount --move "/$folder" "/new/$folder"; done
exec $B switch_root /new /bin/bash /mnt/guest.sh
