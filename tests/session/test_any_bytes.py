"""No message from the device ends a session or leaves it without answers, whatever is in it."""

import struct
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.bodies import CALLS, init
from harness.device import HEADER, LIMIT, Served
from shiftfs.wire import requests
from shiftfs.wire.abi import Opcode

ALL_FLAGS = 2**63 - 1


HEADERS = st.builds(
    lambda opcode, nodeid, uid, gid, body: (
        HEADER.pack(40 + len(body), opcode, 7, nodeid, uid, gid, 1, 0, 0) + body
    ),
    st.one_of(st.sampled_from(sorted(requests.DECODERS)), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, 6), st.integers(0, 2**64 - 1)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=200),
)
NUMBERS = st.one_of(st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))


@st.composite
def plausible(draw: st.DrawFn) -> bytes:
    """A body of the right length for its opcode, with any numbers in it."""
    opcode = draw(st.sampled_from(sorted(CALLS)))
    _, body, _ = CALLS[opcode]
    words = len(body) // 8
    changed = bytearray(body)
    for _ in range(draw(st.integers(0, 3)) if words else 0):
        struct.pack_into("@Q", changed, 8 * draw(st.integers(0, words - 1)), draw(NUMBERS))
    nodeid = draw(st.integers(1, 5))
    return HEADER.pack(40 + len(changed), opcode, 9, nodeid, *draw(st.tuples(IDS, IDS)), 0, 0, 0) + bytes(changed)


IDS = st.sampled_from([0, 1000, 2**32 - 1])
QUIET = settings(
    max_examples=1500, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@QUIET
@given(message=st.one_of(st.binary(min_size=1, max_size=200), HEADERS, plausible()))
def test_no_bytes_end_it(at_work: Served, message: bytes) -> None:
    device = at_work.device
    if at_work.session.negotiated is None:
        device.ask(Opcode.INIT, init(7, 45, ALL_FLAGS), 0)
    device.put(message)
    unique = device.send(Opcode.LOOKUP, b"nowhere\0")
    end = time.monotonic() + LIMIT
    while (answer := device.receive_any()).unique != unique:
        # An append may be followed by a notice, which has its code in the errno's place.
        assert answer.unique == 0 or 0 <= answer.errno < 512
        assert time.monotonic() < end
    assert at_work.thread.is_alive()
