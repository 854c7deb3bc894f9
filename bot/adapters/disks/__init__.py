"""Disks whose limits hold: for each container a preallocated ext4 image for its writable layer, and one for its volumes.

loop       attaching, mounting, and what the kernel says of both
images     a file that is a file system, all of its blocks its own
disks      which container has which image, mounted where; nothing is remembered that the kernel knows
point      a container's disks at one moment, while it stands still
"""
