"""The Protocols between the layers: who waits, what carries TLS' bytes, what holds a run open.

A stream talks to its transport through Transport, and a transport waits through Driver. So TLS
and closing are written once: a driver that suspends tasks makes them asynchronous, one that
blocks the thread makes them blocking.

Names only: of ringtls this module imports nothing but the types of the engine and the figures
that its Protocols mention.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from trio import CancelScope

    from ._engine.handle import Handle
    from ._engine.request import Sink
    from ._engine.ring import Ring
    from ._statistics import Tally

__all__ = ["Driver", "Ending", "OnClosed", "Owner", "TaskDriver", "Transport", "WaitQueue"]


class WaitQueue(Protocol):
    """Something to wait for that happens again and again."""

    def wake(self) -> None:
        """Wake all who wait. Called from tasks and from the ring's callbacks."""

    def wait(self) -> Awaitable[None]:
        """Wait for the next ``wake``; a cancellation ends it."""

    def wait_uncancellable(self) -> Awaitable[None]:
        """Wait for the next ``wake``; nothing else ends it."""


class OnClosed(Protocol):
    """What a transport calls when everything is released."""

    def __call__(self, *, acknowledged: bool, error: OSError | None = None) -> object:
        """``acknowledged``: the peer's TCP has all that was sent, as far as this can be known.
        ``error``: why the end that end_output() began could not be made."""


class Driver(Protocol):
    """How a caller waits for a ring."""

    @property
    def ring(self) -> Ring: ...

    runs_between_calls: ClassVar[bool]
    """True if the ring's callbacks are called while nobody waits."""

    @property
    def is_forked(self) -> bool:
        """True in a child of the process that made this."""

    @property
    def tally(self) -> Tally: ...

    def wait_queue(self) -> WaitQueue:
        """A new one, for callers of this driver."""

    async def wait(self, handle: Handle) -> int | bytes:
        """Wait for a request of the ring and take its result.

        If this is cancelled, the request is cancelled too and its end awaited: the
        cancellation comes out only if the request had no result of its own.
        """

    def look(self) -> None:
        """Complete what the kernel is done with by now. Not from a callback of the ring."""

    async def checkpoint(self) -> None:
        """Let others run, and a cancellation out."""

    async def checkpoint_if_cancelled(self) -> None:
        """Let a cancellation out; if there is none, do not suspend."""

    async def cancel_shielded_checkpoint(self) -> None:
        """Let others run; a cancellation stays for the next checkpoint."""

    async def uncancellable_checkpoint(self) -> None:
        """The same, and a KeyboardInterrupt stays too. The run need not be this driver's."""

    def register(self, ending: Ending) -> None:
        """The end of this run must wait for this connection's end, and see to it."""

    def unregister(self, ending: Ending) -> None:
        """That connection has ended."""

    def call_soon(self, function: Callable[[], object]) -> None:
        """Run a function in the ring's thread. May be called from any thread."""

    def check_caller(self) -> None:
        """Raise RuntimeError in another thread, and in a forked child: nothing has happened
        then."""

    async def wait_at_most(self, queue: WaitQueue, seconds: float) -> None:
        """Wait for the next ``wake`` of one of its queues, or so long; a cancellation ends it."""


class Transport(Protocol):
    """What TLS needs of a byte stream. Only ``receive``, ``wait_sent`` and ``detach`` wait."""

    unsent: int
    """Accepted bytes that may be unsent: no less than there are."""

    answered: int
    """Bytes that TLS itself has said since less than HIGH_WATER was unsent (rule C19)."""

    error: OSError | None
    """Why nothing can be sent any more."""

    input_error: OSError | None
    """Why nothing can be received any more, though the input has not ended."""

    on_crash: Callable[[BaseException], object] | None
    """What is called with what a callback of the transport's own raised."""

    has_stream_below: ClassVar[bool]
    """True if it is over a stream that somebody else may look at, and that is closed with it."""

    @property
    def driver(self) -> Driver: ...

    @property
    def name(self) -> str:
        """Who is at the other end, for log records and warnings."""

    def attach(self, sink: Sink, on_end: Callable[[], object]) -> None:
        """Pass what comes to ``sink`` from now on, and its end to ``on_end``.

        Some may be passed on while nobody waits in ``receive``, but no more than INPUT_LIMIT
        and what is on its way meanwhile.
        """

    def expect_input(self) -> None:
        """Begin to receive, if that can be done without a task: the peer speaks first."""

    def announce_input(self, on_arrival: Callable[[], object] | None) -> None:
        """Call this, until told otherwise, whenever who waits in ``receive`` would be woken. Nobody
        does, or will before it is told otherwise."""

    async def receive(self) -> None:
        """Wait until something was passed on. For callers that have used up what had come.

        May return without that, as when nothing more can be sent. Several tasks may wait.

        Raises:
          trio.BrokenResourceError: the connection broke.
          trio.ClosedResourceError: it was closed while this waited.
        """

    def look(self) -> bool:
        """Pass on what has come already, without waiting. True if no more will come."""

    async def detach(self) -> None:
        """Pass on no more."""

    def pass_on(
        self, sink: Sink, on_end: Callable[[], object], on_change: Callable[[], object]
    ) -> None:
        """As ``attach``, for callers that have no task to wait in.

        From now on ``resume`` takes the place of ``receive``. ``on_change`` is called where a task
        would be woken: when less is unsent than ``has_unsent`` was asked about, when sending or
        receiving has broken, when input is paused, and when the connection is closed.
        """

    def resume(self) -> None:
        """Pass input on as it comes, until ``pause``."""

    @property
    def is_receiving(self) -> bool:
        """True if input will be passed on as it comes."""

    def pause(self) -> None:
        """Pass on no more than what is on its way. ``on_change`` tells when that is over."""

    def receive_now(self, max_bytes: int) -> bytes:
        """What can be received without waiting. b"" if that is nothing; and where input has ended,
        ``on_end`` was called."""

    def half_close(self) -> None:
        """End the output behind all that was accepted, by FIN where the transport has it. Input
        goes on."""

    def has_unsent(self, least: int) -> bool:
        """True if that many bytes are unsent, and then it will be told when they are fewer."""

    def unacknowledged(self) -> int:
        """Bytes that were sent and that the peer's kernel has not taken in, as far as is known."""

    def acknowledge(self) -> None:
        """Have the peer's TCP, if there is one, hear at once that what was passed on has come."""

    def enqueue(self, data: bytes | memoryview) -> None:
        """Accept bytes for sending, in order; never blocks. They are not to be changed."""

    def answer(self, output: bytes) -> None:
        """The same for what TLS itself says, which ``answered`` counts."""

    def answers_too_much(self) -> bool:
        """True if the peer has TLS answer, and takes in nothing (rule C19)."""

    def check_sendable(self) -> None:
        """Raise trio.BrokenResourceError if an earlier send failed."""

    async def wait_sent(self, *, below: int = ...) -> bool:
        """Wait until less than ``below`` bytes are unsent. True if that took a while.

        Raises:
          trio.BrokenResourceError: they can't be sent.
          trio.ClosedResourceError: the stream was closed while this waited.
        """

    def begin_close(
        self,
        deadline: float,
        on_flushed: Callable[[OSError | None], object],
        on_closed: OnClosed,
    ) -> None:
        """Accept no more, wake all who wait, send what is accepted until ``deadline``.

        ``on_flushed`` is called with the reason it failed or None, then ``on_closed`` when
        after end_output() or reset() everything is released.
        """

    def await_delivery(self, deadline: float, on_delivered: Callable[[], object]) -> None:
        """Call ``on_delivered`` when the peer's TCP has acknowledged all that was sent, or at
        ``deadline``."""

    def end_output(self) -> None:
        """Send FIN; discard input until the peer's FIN or a limit, then release everything.

        Raises:
          OSError: the connection is broken.
        """

    def reset(self) -> None:
        """Break the connection so that the peer can't mistake it for an end."""

    def break_off(self, on_closed: OnClosed) -> bool:
        """Reset, wake all who wait and release everything, whatever an exception has left undone
        of an end (rule C16). False if FIN or a reset had been sent already."""

    async def wait_acknowledged(self) -> None:
        """Wait until the peer's TCP has all that was sent.

        Raises:
          trio.BrokenResourceError, trio.ClosedResourceError: as ``wait_sent``.
        """


class TaskDriver(Driver, Protocol):
    """A driver that has tasks: that of a trio run."""

    def move_on_at(self, deadline: float) -> CancelScope:
        """As trio.move_on_at(), with a time of _clock.now(): it comes whatever the run's clock
        does, or sooner if that says so."""

    def start_task(self, function: Callable[[], Awaitable[object]]) -> None:
        """Run a system task, also at the end of the run. It must shield itself."""

    def wake(self) -> None:
        """Have the end of the run look again at what it waits for."""


class Ending(Protocol):
    """What holds a run, or a thread, open until it has ended."""

    runs_user_code: bool
    """Its end may use what others hold open, and comes before theirs. It is no connection."""

    @property
    def started(self) -> bool:
        """True once its end has begun."""

    deadline: float
    """Until when it should have ended, a time of _clock.now()."""

    timeout: float
    """Seconds that its end may take."""

    @property
    def holds_tasks(self) -> bool:
        """True if it is open, and a task of ours may stay until its end begins."""

    @property
    def made_at(self) -> object:
        """Where the user's code made it; ``str`` gives "file:line"."""

    def start_as_orphan(self) -> None:
        """Begin the end: nobody else does."""

    def warn_unclosed(self) -> None:
        """Give the ResourceWarning of something that nobody closed."""

    def give_up(self) -> None:
        """Let go of everything: the deadline is long over (rule C16)."""


class Owner(Protocol):
    """Something whose own end closes what it owns."""

    def postpone(self, function: Callable[[], object]) -> bool:
        """Have a function called when that end is over. False if it is over already."""
