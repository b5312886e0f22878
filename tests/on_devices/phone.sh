#!/bin/bash
# A board with adb, without one: phone.sh ROOT MOUNTS DISK QEMU PORT runs Debian's adb daemon in the
# system that lies in ROOT, where 64-bit Arm programs run by QEMU. For namespaces of its own:
#   unshare --user --map-root-user --net --mount --pid --fork phone.sh ...
# so that its port and its programs are nobody else's, and all it started ends with it.
set -euo pipefail
root=$1 mounts=$2 disk=$3 qemu=$4 port=$5
ip link set lo up
mount --make-rprivate /
mount --bind "$root" "$mounts"
mount -t proc proc "$mounts/proc"
mount --rbind /dev "$mounts/dev"
mount --rbind /sys "$mounts/sys"
mount --bind "$disk" "$mounts/data/local/tmp"
# Since Linux 6.7 each user namespace has formats of its own.
mount -t binfmt_misc binfmt_misc "$mounts/binfmt"
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf '%s' ":arm64:M::$magic:$mask:$qemu:OCF" >"$mounts/binfmt/register"
exec chroot "$mounts" env -i PATH=/system/bin:/usr/bin:/bin:/usr/sbin HOME=/root \
  QEMU_CPU=cortex-a76 ADBD_PORT="$port" /usr/sbin/adbd
