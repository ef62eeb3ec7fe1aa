"""Refuses a system call to the current process for good, as a container's seccomp filter does."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from typing import ClassVar

__all__ = ["forbid", "forbid_io_uring"]

#: The numbers of system calls on x86-64 and aarch64.
_NUMBERS = {"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "sendto": (44, 206)}

PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_ALLOW = 0x7FFF0000

LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K

#: Where the system call's number and its arguments, of 8 bytes each, are in struct seccomp_data.
NUMBER_OFFSET = 0
ARGUMENTS_OFFSET = 16


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


def forbid(call: str, error: int, *, arguments: Mapping[int, int] | None = None) -> None:
    """Have a system call fail with this errno from now on; call it in a child process.

    Args:
      arguments: what some of its arguments are, by their index, when it fails; by default it
        always does. Their lower 32 bits count, on a little-endian machine.

    Raises:
      OSError: the kernel takes no filter.
    """
    wanted = {NUMBER_OFFSET: _NUMBERS[call][platform.machine() == "aarch64"]}
    for index, value in (arguments or {}).items():
        wanted[ARGUMENTS_OFFSET + 8 * index] = value
    code = []
    for left, (offset, value) in zip(reversed(range(len(wanted))), wanted.items(), strict=True):
        code.append(_Instruction(LOAD_WORD, 0, 0, offset))
        code.append(_Instruction(JUMP_IF_EQUAL, 0, 2 * left + 1, value))
    code.append(_Instruction(RETURN, 0, 0, SECCOMP_RET_ERRNO | error))
    code.append(_Instruction(RETURN, 0, 0, SECCOMP_RET_ALLOW))
    instructions = (_Instruction * len(code))(*code)
    program = _Program(len(instructions), instructions)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))


def _prctl(option: int, first: int, second: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_ulong(value) for value in (first, second, 0, 0))
    if libc.prctl(option, *arguments):
        error = ctypes.get_errno()
        raise OSError(error, f"prctl: {os.strerror(error)}")
