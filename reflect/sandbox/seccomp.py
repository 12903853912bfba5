"""The system calls that no program in the sandbox needs, as a filter for the kernel (seccomp,
classic BPF).

Namespaces do not cover everything: AF_VSOCK reaches the host of a virtual machine from an empty
network namespace, no rlimit limits memfd and System V memory, and keyrings, BPF, io_uring and
the mount calls are where kernels break. A call that is refused fails with EPERM, as for any user
without privileges; clone3 fails with ENOSYS, so that libc falls back to clone, whose flags a filter
can read.

Not covered: a bug in a system call that stays. The numbers are those of two machines; on others
there is no filter.
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# name: (x86_64, aarch64), from the kernel's unistd.h; None where the machine has no such call
REFUSED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "mq_open": (240, 180), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "move_mount": (429, 429),
    "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "fanotify_init": (300, 262), "swapon": (167, 224),
    "swapoff": (168, 225), "reboot": (169, 142), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "acct": (163, 89), "syslog": (103, 116), "vhangup": (153, 58), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "nfsservctl": (180, 42),
    "lookup_dcookie": (212, 18),
}  # fmt: skip
CLONE, CLONE3 = (56, 220), 435
SOCKET, SOCKETPAIR = (41, 198), (53, 199)
FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6: harmless in a namespace without a network
NEW_NAMESPACES = 0x7E020080  # CLONE_NEW*: time, mount, cgroup, uts, ipc, user, pid, net
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # (column, AUDIT_ARCH)
X32 = 0x40000000  # the second numbering of x86_64

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF, 32 bits
NUMBER, ARCH, ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the first argument's low word
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def program(machine: str = "") -> bytes | None:
    """This machine's filter in bubblewrap's --seccomp format; None for an unknown architecture."""
    known = MACHINES.get(machine or platform.machine())
    if known is None:
        return None
    column, arch = known
    steps = [(LOAD, 0, 0, ARCH), (EQUAL, 1, 0, arch), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER)]
    steps += [(AT_LEAST, 0, 1, X32), _refuse(errno.ENOSYS)]
    steps += [(EQUAL, 0, 1, CLONE3), _refuse(errno.ENOSYS)]
    numbers = [row[column] for row in REFUSED.values()]
    for number in sorted(n for n in numbers if n is not None):
        steps += [(EQUAL, 0, 1, number), _refuse(errno.EPERM)]
    steps += _when((CLONE[column],), [(ANY_BIT, 0, 1, NEW_NAMESPACES), _refuse(errno.EPERM)])
    allowed = [(EQUAL, len(FAMILIES) - i, 0, family) for i, family in enumerate(FAMILIES)]
    steps += _when((SOCKET[column], SOCKETPAIR[column]), [*allowed, _refuse(errno.EAFNOSUPPORT)])
    steps += [(RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _refuse(number: int) -> tuple[int, int, int, int]:
    return RETURN, 0, 0, ERROR | number


def _when(
    calls: Iterable[int], test: list[tuple[int, int, int, int]]
) -> list[tuple[int, int, int, int]]:
    """For each of these calls, `test` of its first argument: refuse, or fall through to ALLOW."""
    body = [(LOAD, 0, 0, ARGUMENT), *test, (RETURN, 0, 0, ALLOW)]
    return [step for call in calls for step in [(EQUAL, 0, len(body), call), *body]]
