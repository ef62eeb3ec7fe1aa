"""The seccomp profile that is derived from an engine's default one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .seccomp_profile import IO_URING, derive

#: A default as Docker and Podman write it, with every kind of condition.
DEFAULT: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 1,
    "archMap": [
        {
            "architecture": "SCMP_ARCH_X86_64",
            "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        },
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
    ],
    "syscalls": [
        {"names": ["read", "io_uring_enter", "write"], "action": "SCMP_ACT_ALLOW"},
        {
            "names": ["bpf"],
            "action": "SCMP_ACT_ALLOW",
            "args": [],
            "includes": {"caps": ["CAP_BPF"]},
            "excludes": {},
        },
        {
            "names": ["bpf"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 1,
            "errno": "EPERM",
            "excludes": {"caps": ["CAP_BPF"]},
        },
        {
            "names": ["arch_prctl"],
            "action": "SCMP_ACT_ALLOW",
            "args": None,
            "includes": {"arches": ["amd64", "x32"]},
        },
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["arm64"]}},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"names": ["new"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.10"}},
        {
            "names": ["personality"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}],
        },
    ],
}


def test_conditions_are_decided() -> None:
    profile = derive(DEFAULT, "x86_64", "allow")
    assert profile == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
            {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["personality"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}],
            },
            {"names": IO_URING, "action": "SCMP_ACT_ALLOW"},
        ],
    }


def test_another_architecture() -> None:
    profile = derive(DEFAULT, "aarch64", "allow")
    assert profile["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    named = {name for rule in profile["syscalls"] for name in rule["names"]}
    assert not named & {"arch_prctl", "clone"}


def test_what_was_derived_may_be_derived_from() -> None:
    profile = derive(DEFAULT, "x86_64", "allow")
    assert derive(profile, "x86_64", "allow") == profile


@pytest.mark.parametrize(("verdict", "number"), [("EPERM", 1), ("ENOSYS", 38)])
def test_refusal(tmp_path: Path, verdict: str, number: int) -> None:
    default = tmp_path / "default.json"
    default.write_text(json.dumps(DEFAULT))
    script = Path(__file__).parent / "seccomp_profile.py"
    done = subprocess.run(
        [sys.executable, script, "--io-uring", verdict, "--machine", "x86_64", default],
        capture_output=True,
        check=True,
    )
    rules = json.loads(done.stdout)["syscalls"]
    assert [rule for rule in rules if set(rule["names"]) & set(IO_URING)] == [
        {"names": IO_URING, "action": "SCMP_ACT_ERRNO", "errnoRet": number}
    ]
