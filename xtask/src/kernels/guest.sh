#!/bin/bash
# PID 1 on the host's root: what a system would have mounted, and then the tests.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/mnt/docker/usr/sbin HOME=/tmp TERM=dumb CI=1
echo /mnt/modprobe > /proc/sys/kernel/modprobe
mkdir -p /dev/pts /dev/shm
mount -t devpts p /dev/pts
mount -t tmpfs t /dev/shm
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
echo "Linux $(uname -r), up $(cut -d' ' -f1 /proc/uptime) s"
# Written by bridges' netfilter, which a test asks for before the kernel would.
modprobe -d /mnt/root br_netfilter
timeout 3000 bash /mnt/tests.sh
echo $? > /mnt/result
sync
echo o > /proc/sysrq-trigger
sleep 60
