"""The pytest plugin: each case is a run of pytest over tests of its own."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ringtls import TlsStream
from ringtls._streams import leaks as _unclosed

from .conftest import Contexts

pytest_plugins = "pytester"

HEAD = """\
import gc, socket, ssl, threading, types
import pytest, trio, trio.testing, ringtls
from ringtls import SocketStream, TlsStream

def make():
    ours, theirs = socket.socketpair()
    with theirs:
        return SocketStream(ours)  # line 8

@pytest.fixture(scope="module")
def call():
    '''Calls a function in a trio run that goes on through all tests.'''
    started = threading.Event()
    run = []

    async def main():
        run.extend([trio.lowlevel.current_trio_token(), trio.Event()])
        started.set()
        await run[1].wait()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    started.wait()
    yield lambda function: trio.from_thread.run(function, trio_token=run[0])
    run[0].run_sync_soon(run[1].set)
    thread.join()
"""

UNCLOSED = "unclosed stream to fd *, made at *test_*.py:8"


#: Plugins without which pytest starts in half of the time.
WITHOUT = [f"-pno:{name}" for name in ("anyio", "cacheprovider", "randomly", "xdist")]


def run(pytester: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    pytester.makeini("[pytest]\ntrio_mode = true\n")
    pytester.makepyfile(HEAD + tests)
    return pytester.runpytest_subprocess(*WITHOUT, "--strict-markers", *options)


@pytest.mark.parametrize(
    "filters",
    [
        "default",
        pytest.param("ignore", marks=pytest.mark.long),
        pytest.param("error", marks=pytest.mark.long),
    ],
)
def test_a_test_that_leaves_something_unclosed_fails(
    pytester: pytest.Pytester, filters: str
) -> None:
    result = run(
        pytester,
        """
async def test_dropped():
    make()

def test_in_a_run_of_its_own():
    async def main():
        make()
    trio.run(main)

kept = []

async def test_still_open():
    kept.append(make())

async def test_cycle():
    stream = make()
    stream.itself = stream

def test_cycle_in_a_run_that_goes_on(call):
    async def main():
        stream = make()
        stream.itself = stream
    call(main)

async def test_tls():
    TlsStream(make(), ssl.create_default_context(), server_hostname="host")

async def test_several():
    make()
    kept.append(make())

def test_a_test_after_them():
    pass
""",
        *("-W", filters, "-W", "ignore:Module already imported"),  # see pyproject.toml
    )
    assert result.parseoutcomes()["failed"] == 7
    assert result.parseoutcomes()["passed"] == 1
    result.stdout.fnmatch_lines(
        [
            "*_ test_dropped _*",
            UNCLOSED,
            "*_ test_in_a_run_of_its_own _*",
            UNCLOSED,
            "*_ test_still_open _*",
            UNCLOSED,
            "*_ test_cycle _*",
            UNCLOSED,
            "*_ test_cycle_in_a_run_that_goes_on _*",
            UNCLOSED,
            "*_ test_tls _*",
            "unclosed stream to fd *, made at *",
            "*_ test_several _*",
            UNCLOSED,
            UNCLOSED,
        ]
    )


def test_what_is_closed_is_fine(pytester: pytest.Pytester) -> None:
    """And where nothing is open, nothing is collected."""
    result = run(
        pytester,
        """
import ringtls._pytest_watch
ringtls._pytest_watch.gc = types.SimpleNamespace(collect=None)

async def test_closed():
    async with make():
        pass

async def test_broken_off():
    TlsStream(make(), ssl.create_default_context(), server_hostname="host").close_unclean()

def test_in_a_run_that_goes_on(call):
    async def main():
        async with make():
            pass
    call(main)

def test_without_ringtls():
    pass
""",
    )
    result.assert_outcomes(passed=4)


@pytest.mark.long
def test_fixtures(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.fixture
async def stream():
    async with make() as stream:
        yield stream

@pytest.fixture
def leak(call):
    async def main():
        make()
    yield
    call(main)

@pytest.fixture
def early_leak(call):
    async def main():
        make()
    call(main)

@pytest.fixture(scope="module")
def long_lived(call):
    streams = []
    async def main():
        streams.append(make())
    async def close():
        await streams.pop().aclose()
    call(main)
    yield
    call(close)

async def test_closed_by_its_fixture(stream):
    pass

def test_leak_in_the_teardown(leak):
    pass

def test_leak_in_the_setup(early_leak):
    pass

def test_first_use(long_lived):
    pass

def test_second_use(long_lived):
    pass
""",
    )
    result.assert_outcomes(passed=4, failed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leak_in_the_teardown*",
            UNCLOSED,
            "*_ test_leak_in_the_setup _*",
            UNCLOSED,
        ]
    )


@pytest.mark.long
def test_a_failure_of_the_tests_own(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
async def test_failing():
    stream = make()
    raise KeyError("its own")

async def test_skipped():
    stream = make()
    pytest.skip("its own reason")
""",
    )
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*KeyError: 'its own'", "*- Captured ringtls call -*", UNCLOSED])


def test_the_marker(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.ringtls_allow_unclosed
async def test_allowed():
    make()

@pytest.mark.ringtls_allow_unclosed
class TestAllowed:
    async def test_in_a_class(self):
        make()

async def test_not_allowed():
    make()
""",
    )
    result.assert_outcomes(passed=2, failed=1)
    shown = pytester.runpytest_subprocess(*WITHOUT, "--markers")
    shown.stdout.fnmatch_lines(["@pytest.mark.ringtls_allow_unclosed: *"])


@pytest.mark.long
def test_operations(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
async def test_dropped():
    async with make() as stream:
        operation = stream.start_receive()  # line 30
        del operation

async def test_cycle():
    async with make() as stream:
        operations = [stream.start_receive()]  # line 35
        operations.append(operations)

async def test_awaited():
    async with make() as stream:
        assert await stream.start_receive() == b""

async def test_cancelled():
    async with make() as stream:
        stream.start_receive().cancel()
""",
    )
    result.assert_outcomes(failed=2, passed=2)
    result.stdout.fnmatch_lines(
        [
            "recv on fd *, started at *test_*.py:30, was never awaited",
            "recv on fd *, started at *test_*.py:35, was never awaited",
        ]
    )


def test_a6_destructors(pytester: pytest.Pytester) -> None:
    """And what they own, or whose __init__ raised, is not named besides."""
    result = run(
        pytester,
        """
class Session(ringtls.AsyncDestructor):
    def __init__(self, stream, wrong=False):
        self.stream = stream
        if wrong:
            raise KeyError

kept = []

async def test_dropped():
    Session(make())  # line 37

async def test_still_open():
    kept.append(Session(Session(make())))  # line 40

async def test_cycle():
    session = Session(None)  # line 43
    session.itself = session

async def test_closed():
    async with Session(make()):
        pass

async def test_never_made():
    with pytest.raises(KeyError):
        Session(make(), wrong=True)
    await trio.testing.wait_all_tasks_blocked()

async def test_borrowed():
    async with make() as stream:
        async with Session(ringtls.borrowed(stream)):
            pass
        assert stream.socket.fileno() != -1
""",
    )
    result.assert_outcomes(failed=3, passed=3)
    lost = [line for line in result.outlines if line.startswith("unclosed")]
    assert [line.rpartition(":")[2] for line in lost] == ["37", "40", "43"]


@pytest.mark.long
def test_blocking_streams(pytester: pytest.Pytester) -> None:
    """What is held may be a fixture's; it is reported when it is dropped."""
    result = run(
        pytester,
        """
import ringtls.blocking

def make_blocking():
    ours, theirs = socket.socketpair()
    with theirs:
        return ringtls.blocking.SocketStream(ours)  # line 33

@pytest.fixture(scope="module")
def pool():
    streams = []
    yield streams
    for stream in streams:
        stream.close()

def test_dropped():
    make_blocking()

def test_pool_grows(pool):
    pool.append(make_blocking())

def test_pool_is_used(pool):
    assert pool[0].receive_some() == b""

kept = []

def test_kept():
    kept.append(make_blocking())

def test_no_longer_kept():
    kept.clear()
""",
    )
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*_ test_dropped _*",
            "unclosed stream to fd *, made at *test_*.py:33",
            "*_ test_no_longer_kept _*",
            "unclosed stream to fd *, made at *test_*.py:33",
        ]
    )


@pytest.mark.long
def test_an_older_pytest(pytester: pytest.Pytester) -> None:
    """Whose hooks can't be wrappers of the new kind: its run goes on without the plugin."""
    pytester.makepyfile(
        older="""
        import pytest

        class Older(type(pytest.hookimpl)):
            def __call__(self, function=None, hookwrapper=False, optionalhook=False,
                         tryfirst=False, trylast=False):
                return super().__call__(function, hookwrapper, optionalhook, tryfirst, trylast)

        pytest.hookimpl = Older("pytest")
        """
    )
    result = run(
        pytester,
        """
@pytest.mark.ringtls_allow_unclosed
async def test_allowed():
    make()

async def test_not_allowed():
    make()
""",
        *("-q", "-p", "older", "-W", "error", "-W", "ignore:Module already imported"),
        *("-W", "ignore::ResourceWarning", "-W", "ignore::pytest.PytestUnraisableExceptionWarning"),
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["ringtls has not looked for * pytest 8 or newer"])


async def test_nothing_stays_open_after_an_unwrap(contexts: Contexts) -> None:
    open_before = _unclosed.still_open.copy()
    left, right = trio.testing.memory_stream_pair()
    client = TlsStream(left, contexts.client, server_hostname="localhost")
    server = TlsStream(right, contexts.server, server_side=True)
    assert len(_unclosed.still_open - open_before) == 2
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.unwrap)
        nursery.start_soon(server.unwrap)
    assert _unclosed.still_open == open_before
