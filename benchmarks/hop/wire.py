"""What both ends of the compared transports agree on."""

import socket

SERVICE = "benchmarks.Hop"
_HEAD_BYTES = 8
_BUFFER_BYTES = 8 * 2**20


def new_buffer() -> memoryview:
    """Memory for one raw message."""
    return memoryview(bytearray(_BUFFER_BYTES))


def frame(payload: bytes) -> bytes:
    """A raw message: its length and its bytes."""
    return len(payload).to_bytes(_HEAD_BYTES, "little") + payload


def receive(connection: socket.socket, buffer: memoryview) -> int:
    """Reads one raw message, its length included, and returns how long it is; 0 where the other side has left."""
    if not _fill(connection, buffer[:_HEAD_BYTES]):
        return 0
    end = _HEAD_BYTES + int.from_bytes(buffer[:_HEAD_BYTES], "little")
    return end if _fill(connection, buffer[_HEAD_BYTES:end]) else 0


def _fill(connection: socket.socket, part: memoryview) -> bool:
    while part:
        size = connection.recv_into(part)
        if size == 0:
            return False
        part = part[size:]
    return True
