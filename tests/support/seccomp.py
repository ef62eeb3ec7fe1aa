"""Refuses a system call to the current process for good, as a container's seccomp filter does."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import ClassVar

__all__ = ["forbid", "forbid_io_uring"]

#: The numbers of system calls on x86-64 and aarch64.
_NUMBERS = {"io_uring_setup": (425, 425), "sendto": (44, 206)}

PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_ALLOW = 0x7FFF0000

LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K

#: Where the system call's number is in struct seccomp_data.
NUMBER_OFFSET = 0


class _Instruction(ctypes.Structure):
    """struct sock_filter"""

    _fields_: ClassVar = [
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("operand", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_: ClassVar = [
        ("length", ctypes.c_uint16),
        ("instructions", ctypes.POINTER(_Instruction)),
    ]


def forbid_io_uring(error: int) -> None:
    forbid("io_uring_setup", error)


def forbid(call: str, error: int) -> None:
    """Have a system call fail with this errno from now on; call it in a child process.

    Raises:
      OSError: the kernel takes no filter.
    """
    number = _NUMBERS[call][platform.machine() == "aarch64"]
    instructions = (_Instruction * 4)(
        _Instruction(LOAD_WORD, 0, 0, NUMBER_OFFSET),
        _Instruction(JUMP_IF_EQUAL, 0, 1, number),
        _Instruction(RETURN, 0, 0, SECCOMP_RET_ERRNO | error),
        _Instruction(RETURN, 0, 0, SECCOMP_RET_ALLOW),
    )
    program = _Program(len(instructions), instructions)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))


def _prctl(option: int, first: int, second: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_ulong(value) for value in (first, second, 0, 0))
    if libc.prctl(option, *arguments):
        error = ctypes.get_errno()
        raise OSError(error, f"prctl: {os.strerror(error)}")
