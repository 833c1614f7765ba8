import asyncio
import threading

from gpu_service.api.event_queue import EventQueue
from gpu_service.engine.events import Best, Event, Failed, Finished, Token
from gpu_service.errors import SlowReaderError
from gpu_service.sampling.outputs import FinishReason

END = Finished(0, FinishReason.LENGTH, 1, 0, 0, 0)


def _never() -> None:
    raise AssertionError


async def _read(events: EventQueue) -> list[Event]:
    read: list[Event] = []
    while not read or isinstance(read[-1], Token):
        read += await asyncio.wait_for(events.get(), 20)
    return read


async def test_events_of_another_thread_arrive_in_order() -> None:
    events = EventQueue(10_000, _never)

    def write() -> None:
        for number in range(1000):
            events.put(Token(0, number))
        events.put(END)

    thread = threading.Thread(target=write)
    thread.start()
    assert await _read(events) == [*(Token(0, number) for number in range(1000)), END]
    thread.join()


async def test_one_event_too_many_ends_the_queue() -> None:
    overflows: list[None] = []
    events = EventQueue(3, lambda: overflows.append(None))
    for number in range(5):
        events.put(Token(0, number))
    events.put(END)
    *tokens, end = await _read(events)
    assert tokens == [Token(0, 0), Token(0, 1), Token(0, 2)]
    assert isinstance(end, Failed)
    assert isinstance(end.error, SlowReaderError)
    assert overflows == [None]


async def test_the_end_always_fits() -> None:
    events = EventQueue(1, _never)
    events.put(Token(0, 0))
    events.put(END)
    assert await _read(events) == [Token(0, 0), END]


async def test_a_better_beam_takes_the_place_of_one_that_waits() -> None:
    events = EventQueue(2, _never)
    events.put(Token(0, 0))
    for number in range(100):
        events.put(Best((number,), -1.0))
    events.put(END)
    assert await events.get() == [Token(0, 0), Best((99,), -1.0), END]
