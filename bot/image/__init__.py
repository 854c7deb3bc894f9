"""The file that an enclave is started from, and what of it is measured.

eif         the container: kernel, command line, ramdisks, metadata, signature        pure
cpio        a ramdisk: files in the kernel's "newc" format                           pure
pcrs        what the hypervisor measures of all that, as AWS documents it             pure
difference  what two images differ in, down to files                                 pure
tree        a folder as the entries of a ramdisk
"""
