"""R1 to R4 at random: no end is forged, whatever both peers do.

A case is a function of its seed: the kinds of both streams, what each peer says and how fast it
reads, and how and when it leaves. The judge knows both sides: what a peer has read is a prefix of
what the other one said; it saw an end only if the other one has ended in order, and then it has
read all.

Many relays run at once. RINGTLS_CASES sets the number of cases, RINGTLS_SEED the first seed.
"""

from __future__ import annotations

import os
import random
import socket
import ssl
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
import trio

from ringtls import RelayEnd, RelayOutcome, TlsStream, relay
from ringtls._streams import closing

from ..conftest import Contexts
from ..support.relaying import END, KINDS, Kind, Meeting, Saw, Talker, TlsTalker
from ..support.streams import open_fds, reset
from ..support.waiting import LIMIT

CASES = int(os.environ.get("RINGTLS_CASES", "96"))
FIRST_SEED = int(os.environ.get("RINGTLS_SEED", "0"))

AT_ONCE = 32

#: Bytes that a peer says at most: the kernel, and the relay, hold them all. So nobody waits for a
#: peer that waits too.
MOST = 150_000


#: Smaller buffers hold less than a segment of the loopback device. Where both ends of a connection
#: are full of that, Linux drops the acknowledgements, too, and neither goes on.
LEAST_BUFFER = 131072


@dataclass(repr=False)
class Role:
    """What one peer says and does."""

    rng: random.Random
    leave: str = field(init=False)
    said: bytearray = field(init=False, default_factory=bytearray)
    has_ended: bool = field(init=False, default=False)
    saw: Saw | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.leave = self.rng.choice(("end", "end", "answer", "close", "reset", "truncate"))

    def __repr__(self) -> str:
        saw = self.saw and f"{len(self.saw.data)} bytes, {self.saw.end}"
        return f"{self.leave} after {len(self.said)} bytes (saw {saw})"

    def play(self, talker: Talker) -> Saw | None:
        with suppress(ConnectionError, ssl.SSLError):
            talker.handshake()
            self._play(talker)
        return self.saw

    def _play(self, talker: Talker) -> None:
        rng = self.rng
        if self.leave == "answer":
            self._read(talker)
        left = MOST if rng.random() < 0.8 else 0
        while left > 0:
            piece = rng.randbytes(min(left, rng.choice((1, 500, 20_000, 100_000))))
            left -= len(piece)
            if rng.random() < 0.2:
                left = 0
            self.said += piece  # at once, as some of it may arrive though this raises
            talker.send(piece)
            if rng.random() < 0.1:
                time.sleep(0.001)
        if self.leave == "reset":
            reset(talker.sock)
        elif self.leave == "truncate" and isinstance(talker, TlsTalker):
            with suppress(OSError):  # it was reset
                talker.sock.shutdown(socket.SHUT_WR)
            self._read(talker)
        elif self.leave != "close" or not isinstance(talker, TlsTalker):
            self.has_ended = True
            if self.leave != "close":
                talker.half_close()
                if self.leave == "end":
                    self._read(talker)

    def _read(self, talker: Talker) -> None:
        time.sleep(self.rng.choice((0, 0, 0.01)))
        self.saw = talker.read()


class Case:
    """One relay."""

    def __init__(self, seed: int, contexts: Contexts) -> None:
        rng = random.Random(seed)
        self.seed = seed
        self.client = Role(random.Random(rng.random()))
        self.backend = Role(random.Random(rng.random()))
        if self.client.leave == self.backend.leave == "answer":
            self.client.leave = "end"  # else each waits for the other
        self.kinds: tuple[Kind, Kind] = rng.choice(KINDS), rng.choice(KINDS)
        version = rng.choice((ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3))
        self.meeting = Meeting(
            contexts.of_version(version),
            self.kinds,
            self.client.play,
            self.backend.play,
            buffer_size=rng.choice((None, LEAST_BUFFER)),
        )
        self.outcome: RelayOutcome | None = None

    def __repr__(self) -> str:
        return (
            f"seed {self.seed}: {self.kinds[0]} to {self.kinds[1]}, {self.client} and "
            f"{self.backend}: {self.outcome}"
        )

    async def run(self) -> None:
        streams = self.meeting.streams()
        for stream in streams:
            if isinstance(stream, TlsStream):
                stream.shutdown_timeout = LIMIT
        self.outcome = await relay(*streams)

    def judge(self) -> None:
        self.meeting.join()
        assert self.outcome is not None
        for direction in (self.outcome.a_to_b, self.outcome.b_to_a):
            assert direction.end is not RelayEnd.CANCELLED, f"it did not end in time: {self}"
        for writer, reader in ((self.client, self.backend), (self.backend, self.client)):
            if reader.saw is None:
                continue
            assert bytes(writer.said).startswith(reader.saw.data), self
            if reader.saw.end == END:
                assert writer.has_ended, self
                assert reader.saw.data == writer.said, self
        if self.client.leave == self.backend.leave == "end":
            assert self.outcome.is_orderly, self
            assert self.client.saw == Saw(bytes(self.backend.said), END), self
            assert self.backend.saw == Saw(bytes(self.client.said), END), self


def test_r1_r2_r3_r4_at_random(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "SHUTDOWN_TIMEOUT", LIMIT)  # a busy machine is no slow reader
    fds = open_fds()
    ends: Counter[str] = Counter()
    for first in range(FIRST_SEED, FIRST_SEED + CASES, AT_ONCE):
        cases = [Case(seed, contexts) for seed in range(first, first + AT_ONCE)]

        async def main(cases: list[Case] = cases) -> None:
            with trio.fail_after(LIMIT):
                async with trio.open_nursery() as nursery:
                    for case in cases:
                        nursery.start_soon(case.run)

        trio.run(main)
        for case in cases:
            case.judge()
            assert case.outcome is not None
            ends[case.outcome.a_to_b.end.value] += 1
        del cases, case
    assert open_fds() == fds
    assert {"orderly", "reset", "truncated", "undelivered"} <= ends.keys()
