"""SIGHUP when something is wrong: the server goes on with the certificates that it has."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID

from ringtls._cli import certificates

from .conftest import Contexts
from .support.server import TEXT, Server, Start, both_modes, fails, starting

#: A SubjectAltName with an ediPartyName (RFC 5280, section 4.2.1.6), which OpenSSL takes.
EDI_PARTY_NAME = bytes.fromhex("3007a505a1030c0178")

KEPT = "SIGHUP: the certificates stay as they were: "


@pytest.fixture
def files(contexts: Contexts, tmp_path: Path) -> Contexts:
    """The same certificate and key, in files that a test may replace."""
    return dataclasses.replace(
        contexts,
        certificate=Path(shutil.copy(contexts.certificate, tmp_path / "certificate.pem")),
        key=Path(shutil.copy(contexts.key, tmp_path / "key.pem")),
    )


@pytest.fixture
def start(files: Contexts, tmp_path: Path) -> Iterator[Start]:
    site = tmp_path / "site"
    site.mkdir()
    (site / "text.txt").write_bytes(TEXT)
    with starting(files, site, tmp_path) as start:
        yield start


def write_odd_certificate(path: Path) -> None:
    """With its key: one that ``cryptography`` does not read the names of."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = certificates._name("odd")
    san = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, EDI_PARTY_NAME)
    certificate = (
        certificates._builder(name, name, key.public_key())
        .add_extension(san, critical=False)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@both_modes
def test_names_that_can_not_be_read(
    start: Start, files: Contexts, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    shutil.copy(files.certificate, directory / "a.pem")
    shutil.copy(files.key, directory / "a.key")
    server = start(*mode, "--cert-dir", str(directory))
    odd = directory / "odd.pem"
    write_odd_certificate(odd)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log(f"{KEPT}can't read the names in {odd}: ")
    assert server.works()
    assert server.stop() == 0
    said = fails("--cert-dir", str(directory))
    assert said.startswith(f"ringtls: can't read the names in {odd}: ")


@contextmanager
def free_descriptors(process: int, number: int) -> Iterator[None]:
    """A process has no more than these left, as if connections had taken the others."""
    taken = {int(name) for name in os.listdir(f"/proc/{process}/fd")}
    free = [descriptor for descriptor in range(len(taken) + number + 1) if descriptor not in taken]
    before = resource.prlimit(process, resource.RLIMIT_NOFILE)
    resource.prlimit(process, resource.RLIMIT_NOFILE, (free[number], before[1]))
    yield
    resource.prlimit(process, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_shortage_of_descriptors(start: Start, number: int) -> None:
    """None to read files by, one for a certificate, none for its key, or none for OpenSSL."""
    server: Server = start()
    with free_descriptors(server.process.pid, number):
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log(KEPT)
    assert server.works()
    assert server.stop() == 0
