#!/bin/sh
# DEVELOPMENT ONLY. First process of a machine in namespaces of its own: makes the root from the image, and becomes its init.
# power_on.sh IMAGE LAYER FOLDER NAME: IMAGE and LAYER stay as they are; of FOLDER the machine sees vsock/, nsm/ and log/.
set -eu
image=$1 layer=$2 folder=$3 name=$4
over=$folder/memory root=$folder/memory/root
controllers="cpu cpuacct cpuset memory devices freezer blkio pids"

hostname "$name"
mount -t tmpfs -o mode=755 memory "$over"
mkdir "$over/upper" "$over/work" "$root"
mount -t overlay -o "lowerdir=$layer:$image,upperdir=$over/upper,workdir=$over/work" root "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755,size=1m cgroup "$root/sys/fs/cgroup"
for controller in $controllers; do
    mkdir "$root/sys/fs/cgroup/$controller"
    mount -t cgroup -o "$controller" cgroup "$root/sys/fs/cgroup/$controller"
done
mkdir "$root/sys/fs/cgroup/systemd"
mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"

mount -t tmpfs -o mode=755,size=1m,nosuid dev "$root/dev"
node() { mknod -m "$2" "$root/dev/$1" c "$3" "$4"; }
node null 666 1 3
node zero 666 1 5
node full 666 1 7
node random 666 1 8
node urandom 666 1 9
node tty 666 5 0
node loop-control 600 10 237
mkdir "$root/dev/net" "$root/dev/pts" "$root/dev/shm"
node net/tun 600 10 200
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs -o nosuid,nodev,size=64m shm "$root/dev/shm"
mount -t tmpfs -o mode=755,nosuid,nodev run "$root/run"
mount -t tmpfs -o nosuid,nodev tmp "$root/tmp"
for shared in vsock nsm log; do
    mkdir "$root/run/$shared"
    mount --bind "$folder/$shared" "$root/run/$shared"
done

cd "$root"
mkdir run/before
pivot_root . run/before
cd /
umount -l /run/before
rmdir /run/before
exec tini -s -- /usr/local/sbin/enclave.sh
