"""Traces: the file, the steps made from it, and the drawn traces compared with measurements."""

import gzip
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from benchmarks.traces import RECORDED, Generation, Ids, Trace, TraceError, record, synthetic
from fiddler.checkpoint import Checkpoint

Shares = npt.NDArray[np.float64]


def _ids(*tokens: tuple[int, ...]) -> Ids:
    """[layers, tokens, k] of two layers; the second chooses each expert's successor."""
    first = np.array(tokens, dtype=np.int16)
    return np.stack([first, (first + 1) % 4])


TRACE = Trace(
    "small",
    (4, 4),
    2,
    "by hand",
    (
        Generation("a", _ids((0, 1), (2, 3)), _ids((0, 2), (0, 3), (1, 3))),
        Generation("a", _ids((1, 0)), _ids((3, 2), (3, 1))),
        Generation("b", _ids((2, 1)), _ids((1, 2))),
    ),
)


def _same(one: Trace, other: Trace) -> bool:
    pairs = zip(one.generations, other.generations, strict=True)
    return all(
        a.topic == b.topic and np.array_equal(a.prompt, b.prompt) and np.array_equal(a.output, b.output)
        for a, b in pairs
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    TRACE.save(path)
    loaded = Trace.load(path)
    assert _same(loaded, TRACE)
    assert (loaded.name, loaded.num_experts, loaded.top_k, loaded.provenance) == ("small", (4, 4), 2, "by hand")


def test_the_same_trace_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.jsonl.gz"
    TRACE.save(path)
    content = path.read_bytes()
    monkeypatch.setattr("time.time", lambda: 1e9)
    TRACE.save(path)
    assert path.read_bytes() == content


def test_the_file_is_a_header_and_a_line_per_step(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    TRACE.save(path)
    header, *steps = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert header["num_experts"] == [4, 4]
    assert [step["phase"] for step in steps] == [
        "prefill",
        *["decode"] * 3,
        "prefill",
        *["decode"] * 2,
        "prefill",
        "decode",
    ]
    assert steps[1] == {"generation": 0, "topic": "a", "phase": "decode", "ids": [[[0, 2]], [[1, 3]]]}


@pytest.mark.parametrize(
    "content",
    [b"", b"text", gzip.compress(b"{}", mtime=0), gzip.compress(b"[1]\n", mtime=0), gzip.compress(b"{", mtime=0)],
)
def test_what_is_no_trace_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=f"^{path}: not a trace"):
        Trace.load(path)


def test_a_trace_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"format": 2}\n'))
    with pytest.raises(TraceError, match="format 2 is not 1"):
        Trace.load(path)


def test_one_row_at_a_time() -> None:
    steps = list(TRACE.steps())
    assert [(step.phase, step.topic, step.rows) for step in steps] == [
        *[("prefill", "a", 2), ("decode", "a", 1), ("decode", "a", 1), ("decode", "a", 1)],
        *[("prefill", "a", 1), ("decode", "a", 1), ("decode", "a", 1)],
        *[("prefill", "b", 1), ("decode", "b", 1)],
    ]
    assert steps[0].counts(0, 4) == [1, 1, 1, 1]
    assert steps[1].counts(1, 4) == [0, 1, 0, 1]


def test_a_batch_decodes_until_its_shortest_generation_ends() -> None:
    steps = list(TRACE.steps(batch_size=2))
    assert [(step.phase, step.rows) for step in steps] == [("prefill", 2), ("prefill", 1), ("decode", 2), ("decode", 2)]
    assert steps[2].ids[0].tolist() == [[0, 2], [3, 2]]
    assert [step.rows for step in TRACE.decode(2)] == [2, 2]


def test_prompts_of_any_length_are_put_together_from_a_topic() -> None:
    steps = list(TRACE.prefill(4))
    assert [(step.topic, step.rows) for step in steps] == [("a", 4), ("a", 4), ("b", 4)]
    assert steps[0].ids[0].tolist() == [[0, 1], [2, 3], [0, 2], [0, 3]]
    assert steps[2].ids[0].tolist() == [[2, 1], [1, 2], [2, 1], [1, 2]]


def test_the_recorded_trace() -> None:
    trace = Trace.load()
    assert RECORDED.stat().st_size < 300_000
    assert trace.topics == ("scripture", "database")
    assert trace.num_experts == (8,) * 4
    assert trace.provenance.startswith(f"models/demo {Checkpoint.open(record.MODEL).fingerprint[:12]}")
    for topic in trace.topics:
        assert max(step.rows for step in trace.decode(12) if step.topic == topic) == 12
    for step in trace.steps():
        assert step.ids.shape[::2] == (4, 2)
        assert (step.ids[..., 0] != step.ids[..., 1]).all()
        assert step.ids.min() >= 0
        assert step.ids.max() < 8


@pytest.fixture
def _threads_restored() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("_threads_restored")
def test_the_recording_can_be_made_again() -> None:
    opening = record.OPENINGS["scripture"][0]
    short = record.record({"scripture": [opening]}, output_tokens=6)
    recorded = Trace.load().generations[0]
    assert np.array_equal(short.generations[0].prompt, recorded.prompt)
    assert np.array_equal(short.generations[0].output, recorded.output[:, :6])


_small = partial(synthetic.generate, num_generations=2, prompt_tokens=8, output_tokens=8)


def test_a_seed_gives_one_trace() -> None:
    one, same, other = (_small(synthetic.MIXTRAL, seed=seed) for seed in (3, 3, 4))
    assert _same(one, same)
    assert not _same(one, other)


@pytest.mark.parametrize("routing", [synthetic.MIXTRAL, synthetic.FINE_GRAINED], ids=lambda routing: routing.name)
def test_a_token_chooses_different_experts(routing: synthetic.Routing) -> None:
    trace = _small(routing)
    ids = np.sort(trace.generations[0].output, axis=-1)
    assert ids.shape == (routing.num_layers, 8, routing.top_k)
    assert ids.min() >= 0
    assert ids.max() < routing.num_experts
    assert (np.diff(ids, axis=-1) > 0).all()


def _shares(trace: Trace, topic: str) -> Shares:
    """[layers, experts], shares of a layer's calls."""
    ids = np.concatenate([one.output for one in trace.generations if one.topic == topic], axis=1)
    counts = [np.bincount(layer.reshape(-1), minlength=n) for layer, n in zip(ids, trace.num_experts, strict=True)]
    shares: Shares = np.stack(counts) / ids[0].size
    return shares


def _log_shares(trace: Trace, topic: str) -> Shares:
    logs = np.log(_shares(trace, topic))
    centred: Shares = logs - logs.mean(axis=1, keepdims=True)
    return centred


def test_the_drawn_mixtral_is_like_the_measured_one() -> None:
    trace = synthetic.generate(synthetic.MIXTRAL, num_generations=8, output_tokens=192)
    logs = [_log_shares(trace, topic) for topic in trace.topics]
    assert all(0.23 < one.std() < 0.35 for one in logs)
    assert 0.35 < np.corrcoef(logs[0].ravel(), logs[1].ravel())[0, 1] < 0.65
    first_choices = np.concatenate([one.output[..., 0] for one in trace.generations])
    assert 0.18 < (first_choices[:, 1:] == first_choices[:, :-1]).mean() < 0.26


def test_the_drawn_fine_grained_model_is_like_the_measured_one() -> None:
    trace = synthetic.generate(synthetic.FINE_GRAINED, topics=("only",), num_generations=8)
    shares = _shares(trace, "only")
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=1)
    assert 0.10 < (1 - entropy / np.log(128)).mean() < 0.15
    assert 0.04 < shares.max(axis=1).mean() < 0.06
