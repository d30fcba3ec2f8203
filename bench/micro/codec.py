"""Requests from bytes, and replies to bytes."""

from shiftfs.wire import abi, replies, requests

from ..jobs import MicroJob, Work, repeat

_TIMES = range(20_000)
_FOREVER = (1 << 62, 0)
_ATTRIBUTES = (42, 4096, 8, 1, 2, 3, 4, 5, 6, 0o100644, 1, 1000, 1000, 0, 4096, 0)


def _message(opcode: abi.Opcode, body: bytes) -> memoryview:
    header = abi.HEADER.pack(abi.HEADER.size + len(body), opcode, 7, 1, 1000, 1000, 4321, 0)
    return memoryview(header + body)


def _decode(opcode: abi.Opcode, body: bytes) -> MicroJob:
    message = _message(opcode, body)
    decode = requests.decode
    return MicroJob(f"decode {opcode.name}", lambda: repeat(lambda _: decode(message), _TIMES))


def _entry() -> Work:
    entry = replies.entry
    return repeat(lambda nodeid: entry(nodeid, 0, _FOREVER, _FOREVER, _ATTRIBUTES), _TIMES)


def _reply() -> Work:
    reply, payload = replies.reply, bytes(128)
    return repeat(lambda unique: reply(unique, payload), _TIMES)


def jobs() -> tuple[MicroJob, ...]:
    return (
        _decode(abi.Opcode.LOOKUP, b"file000042\0"),
        _decode(abi.Opcode.GETATTR, abi.GETATTR_IN.pack(0, 0)),
        _decode(abi.Opcode.READ, abi.READ_IN.pack(1, 0, 4096, 0, 0, 0)),
        _decode(abi.Opcode.BATCH_FORGET, abi.BATCH_FORGET_IN.pack(100) + abi.FORGET_ONE.pack(7, 1) * 100),
        MicroJob("encode an entry", _entry),
        MicroJob("encode a reply", _reply),
    )
