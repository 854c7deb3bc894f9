"""The system calls that a container may make: an allow-list of our own.

Docker's default lets a container open AF_VSOCK to the parent of the enclave, past every firewall:
on old engines directly, on newer ones through the 32-bit ``socketcall``. So one architecture only
(``int 0x80`` kills the process), and sockets of four families only. io_uring is left out: it opens
sockets without the socket call.
"""

import json
import socket

# Grouped by what they are for; x86_64 names.
_FILES = """
access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock
fremovexattr fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr ioctl
lchown lgetxattr link linkat listxattr llistxattr lremovexattr lseek lsetxattr lstat mkdir mkdirat mknod
mknodat newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead
readlink readlinkat readv removexattr rename renameat renameat2 rmdir sendfile setxattr splice stat statfs
statx symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat
utimes vmsplice write writev
"""
_MEMORY = """
brk madvise membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap msync munlock
munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages
"""
_PROCESSES = """
arch_prctl capget capset execve execveat exit exit_group fork getegid geteuid getgid getgroups getpgid
getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid
get_robust_list get_thread_area ioprio_get ioprio_set kill pidfd_open pidfd_send_signal prctl prlimit64
restart_syscall rseq sched_getaffinity sched_getattr sched_getparam sched_get_priority_max
sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr
sched_setparam sched_setscheduler sched_yield setfsgid setfsuid setgid setgroups setpgid setpriority
setregid setresgid setresuid setreuid setrlimit setsid setuid set_robust_list set_thread_area
set_tid_address sysinfo tgkill times tkill uname vfork wait4 waitid getcpu
"""
_SIGNALS_AND_TIME = """
alarm clock_getres clock_gettime clock_nanosleep futex futex_waitv getitimer gettimeofday nanosleep pause
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_tgsigqueueinfo setitimer sigaltstack signalfd signalfd4 time timer_create timer_delete timer_getoverrun
timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
"""
_EVENTS_AND_IPC = """
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
eventfd eventfd2 inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy
io_getevents io_setup io_submit mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink
msgctl msgget msgrcv msgsnd pipe pipe2 poll ppoll pselect6 select semctl semget semop semtimedop shmat
shmctl shmdt shmget
"""
_SOCKETS = """
accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg
sendmsg sendto setsockopt shutdown socketpair getrandom landlock_add_rule landlock_create_ruleset
landlock_restrict_self seccomp
"""
# No AF_VSOCK, AF_PACKET, AF_ALG or anything else. NETLINK is how programs list their own addresses.
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
# clone() may not make namespaces: these are the CLONE_NEW… flags, including the user namespace's.
_NEW_NAMESPACES = 0x7E020000
# personality() may ask and choose the ordinary ones: PER_LINUX, UNAME26, ADDR_NO_RANDOMIZE.
_PERSONALITIES = (0x0, 0x0020000, 0x0040000, 0x0008, 0xFFFFFFFF)
_EPERM, _ENOSYS = 1, 38


def profile() -> str:
    """The profile as JSON text, for ``security_opt``."""
    allow = "SCMP_ACT_ALLOW"
    names = " ".join(
        [_FILES, _MEMORY, _PROCESSES, _SIGNALS_AND_TIME, _EVENTS_AND_IPC, _SOCKETS]
    ).split()
    rules: list[dict[str, object]] = [
        {"names": sorted(names), "action": allow},
        # glibc falls back from clone3 (whose flags lie in memory, unseen here) to clone on ENOSYS.
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
        {
            "names": ["clone"],
            "action": allow,
            "args": [_arg(_NEW_NAMESPACES, "SCMP_CMP_MASKED_EQ")],
        },
    ]
    rules += [
        {"names": ["personality"], "action": allow, "args": [_arg(number)]}
        for number in _PERSONALITIES
    ]
    rules += [
        {"names": ["socket"], "action": allow, "args": [_arg(int(family))]} for family in _FAMILIES
    ]
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": _EPERM,
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": rules,
        }
    )


def _arg(value: int, op: str = "SCMP_CMP_EQ") -> dict[str, object]:
    # For MASKED_EQ `value` is the mask and `valueTwo` (0) what must remain.
    return {"index": 0, "value": value, "valueTwo": 0, "op": op}
