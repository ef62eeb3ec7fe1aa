"""Derives a seccomp profile from a container engine's default: the same, but for io_uring.

    python3 seccomp_profile.py /usr/share/containers/seccomp.json > ringtls.json

The defaults of Podman (the file above) and Docker (docs/deployment.md says where) have rules that
hold only for some capability, architecture or kernel. The OCI runtimes' own format has no such
conditions, and containerd, which reads nothing else, passes over them: it would take every rule as
it stands. So what is written here is the OCI format, which all engines read:

1. The conditions are decided: no capability, one architecture, the oldest kernel that ringtls
   runs on. A container that is given capabilities does not get the system calls of theirs.
2. io_uring's calls are in one rule, the last, and in no other.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
from pathlib import Path
from typing import Any

IO_URING = ["io_uring_setup", "io_uring_enter", "io_uring_register"]

KERNEL = (6, 1)

#: The names that engines and libseccomp have for uname -m.
ARCHITECTURES = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}

VERDICTS: dict[str, dict[str, Any]] = {
    "allow": {"action": "SCMP_ACT_ALLOW"},
    "EPERM": {"action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM},
    "ENOSYS": {"action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
}


def derive(default: dict[str, Any], machine: str, io_uring: str) -> dict[str, Any]:
    """The profile for a machine (as uname -m has it) with this verdict on io_uring."""
    profile: dict[str, Any] = {
        key: default[key] for key in ("defaultAction", "defaultErrnoRet") if key in default
    }
    profile["architectures"] = _architectures(default, machine)
    profile["syscalls"] = rules = []
    for rule in default["syscalls"]:
        names = [name for name in rule["names"] if name not in IO_URING]
        if names and _holds(rule, machine):
            kept = ("action", "errnoRet", "args")
            rules.append({"names": names} | {key: rule[key] for key in kept if rule.get(key)})
    rules.append({"names": IO_URING, **VERDICTS[io_uring]})
    return profile


def _architectures(default: dict[str, Any], machine: str) -> list[str]:
    native = ARCHITECTURES[machine][1]
    if "archMap" not in default:
        return list(default.get("architectures", [native]))
    [entry] = [entry for entry in default["archMap"] if entry["architecture"] == native]
    return [native, *(entry["subArchitectures"] or ())]


def _holds(rule: dict[str, Any], machine: str) -> bool:
    """Whether the rule's conditions do."""
    includes = rule.get("includes") or {}
    excludes = rule.get("excludes") or {}
    name = ARCHITECTURES[machine][0]
    oldest = tuple(int(part) for part in includes.get("minKernel", "0").split("."))
    return (
        not includes.get("caps")
        and name in (includes.get("arches") or [name])
        and name not in (excludes.get("arches") or [])
        and oldest <= KERNEL
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Derive a seccomp profile from a default one.")
    parser.add_argument("default", type=Path, help="the engine's default profile")
    parser.add_argument("--io-uring", choices=VERDICTS, default="allow")
    parser.add_argument("--machine", choices=ARCHITECTURES, default=os.uname().machine)
    arguments = parser.parse_args()
    default = json.loads(arguments.default.read_text())
    print(json.dumps(derive(default, arguments.machine, arguments.io_uring), indent=2))


if __name__ == "__main__":
    main()
