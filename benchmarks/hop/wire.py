"""Names and framing that both ends of the compared transports share."""

import socket

SERVICE = "benchmarks.Hop"
_HEAD_BYTES = 8
_BUFFER_BYTES = 8 * 2**20


def new_buffer() -> memoryview:
    """A buffer for one raw message."""
    return memoryview(bytearray(_BUFFER_BYTES))


def frame(payload: bytes) -> bytes:
    """A raw message: its length, then its bytes."""
    return len(payload).to_bytes(_HEAD_BYTES, "little") + payload


def receive(connection: socket.socket, buffer: memoryview) -> int:
    """Reads one raw message with its length; returns its bytes in all, or 0 if the other side has closed."""
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
