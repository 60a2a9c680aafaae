"""The system calls that the sandbox refuses, as a filter for the kernel.

Namespaces and limits leave gaps that only a filter closes: limits on the number of processes don't bind root,
namespaces nest, some memory counts against no limit on address space, and sockets of virtual machines reach
their host from any network namespace.
"""

import platform
import struct

from selfalign.errors import SandboxError

# Their numbers on x86-64 and on AArch64, which lacks some of them.
_REFUSED: dict[str, tuple[int, int | None]] = {
    # Processes and threads.
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "clone3": (435, 435),
    # Namespaces and mounts.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    # Sockets; not pairs of them, which event loops need.
    "socket": (41, 198),
    # Memory that no limit counts.
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # Other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # Parts of the kernel that ordinary programs never use.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "personality": (135, 92),
}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_FIRST_X32_CALL = 1 << 30


def syscall_filter() -> bytes:
    """Return a filter that refuses the calls with "operation not permitted", in the form bubblewrap loads.

    Raises:
        SandboxError: There is none for this kind of machine.

    Source: the manual page seccomp(2) for the form, a classic BPF program on `struct seccomp_data`; which
        calls is our choice.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise SandboxError(f"there is no sandbox for {machine}; run it on {' or '.join(_ARCHITECTURES)}")
    column, architecture = _ARCHITECTURES[machine]
    load, equal, at_least, leave = 0x20, 0x15, 0x35, 0x06
    refuse, kill, allow = (leave, 0, 0, 0x00050001), (leave, 0, 0, 0x80000000), (leave, 0, 0, 0x7FFF0000)
    # Offset 4 holds the architecture and 0 the number. Another architecture counts its calls otherwise, and
    # so does x32, which shares that of x86-64.
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), kill, (load, 0, 0, 0)]
    lines += [(at_least, 0, 1, _FIRST_X32_CALL), refuse]
    for numbers in _REFUSED.values():
        number = numbers[column]
        if number is not None:
            lines += [(equal, 0, 1, number), refuse]
    return b"".join(struct.pack("=HBBI", *line) for line in [*lines, allow])
