"""The profile command against transformers' own router."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fiddler.checkpoint import Checkpoint
from gpu_service.errors import PromptsError
from gpu_service.placement.popularity import Popularity
from gpu_service.profile import __main__ as command
from gpu_service.profile.prompts import Prompt, read_prompts
from pair import Pair
from tests.support import reference

MAX_TOKENS = 5
TEXTS = ("one prompt", "and another that is longer", "a")
Profile = Callable[..., int]


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch) -> Profile:
    """Runs the command with these arguments; returns its exit status."""

    def run(*arguments: str | Path) -> int:
        monkeypatch.setattr("sys.argv", ["profile", *map(str, arguments)])
        return command.main()

    return run


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TEXTS))
    return path


@pytest.fixture(scope="module")
def expected(tiny: Path) -> Popularity:
    """Counted by transformers on the prompts and its own greedy continuations."""
    from gpu_service.text.tokenizer import Tokenizer

    model, tokenizer = reference.load(tiny), Tokenizer(tiny)
    config = model.config
    counts = torch.zeros(config.num_hidden_layers, config.num_local_experts, dtype=torch.int64)
    tokens = 0
    for text in TEXTS:
        prompt = tokenizer.encode(text)
        output, _ = reference.generate(model, prompt, MAX_TOKENS)
        sequence = [*prompt, *output[:-1]]  # the last token is chosen, but not computed
        routers = model(torch.tensor([sequence]), output_router_logits=True).router_logits
        for layer, logits in enumerate(routers):
            chosen = logits.topk(config.num_experts_per_tok).indices
            counts[layer] += torch.bincount(chosen.reshape(-1), minlength=config.num_local_experts)
        tokens += len(sequence)
    return Popularity(tokens, tuple(tuple(layer) for layer in counts.tolist()))


def _arguments(tiny: Path, prompts: Path, out: Path) -> list[str | Path]:
    required: list[str | Path] = ["--model", tiny, "--prompts", prompts, "--out", out]
    return [*required, "--max-tokens", str(MAX_TOKENS), "--device", "cpu"]


@pytest.mark.parametrize("max_slots", ["1", "8"])
def test_the_counts_are_those_of_transformers(
    max_slots: str, tiny: Path, prompts: Path, tmp_path: Path, profile: Profile, expected: Popularity
) -> None:
    out = tmp_path / "popularity.json"
    assert profile(*_arguments(tiny, prompts, out), "--max-slots", max_slots) == 0
    assert Popularity.load(out, Checkpoint.open(tiny)) == expected


def test_a_running_cpu_expert_service_counts_the_same(
    tiny: Path, prompts: Path, tmp_path: Path, profile: Profile, expected: Popularity, pair: Pair
) -> None:
    out = tmp_path / "popularity.json"
    assert profile(*_arguments(tiny, prompts, out), "--experts", pair.experts) == 0
    assert Popularity.load(out, Checkpoint.open(tiny)) == expected


@pytest.mark.parametrize(
    ("flag", "value", "problem"),
    [
        ("--prompts", "{tmp}/none.txt", "--prompts: {tmp}/none.txt cannot be read: No such file or directory"),
        ("--prompts", "{tmp}/empty.txt", "--prompts: {tmp}/empty.txt holds no prompt"),
        ("--model", "{tmp}/nowhere", "{tmp}/nowhere does not exist; give"),
        ("--experts", "unix:{tmp}/none.sock", "unix:{tmp}/none.sock: "),
        (
            "--max-context",
            "10",
            "--prompts: {tmp}/prompts.txt:1: 9 tokens; the context of 10 leaves room for 1 to 5 before the",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(
    flag: str,
    value: str,
    problem: str,
    tiny: Path,
    prompts: Path,
    tmp_path: Path,
    profile: Profile,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.txt").write_text("\n  \n")
    out = tmp_path / "popularity.json"
    assert profile(*_arguments(tiny, prompts, out), flag, value.format(tmp=tmp_path)) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"gpu_service.profile: {problem.format(tmp=tmp_path)}")
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("out", "problem"), [("none/file.json", "/none is not a directory"), (".", " is a directory")], ids=str
)
def test_a_file_that_cannot_be_written_is_told_before_the_work(
    out: str,
    problem: str,
    tiny: Path,
    prompts: Path,
    tmp_path: Path,
    profile: Profile,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        profile(*_arguments(tiny, prompts, tmp_path / out))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("gpu_service.profile: --out: ")
    assert error.endswith(f"{problem}\n")


def test_prompts_are_lines_that_are_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text('first\n\n  \n{"text": "taken as it is"}\n')
    assert read_prompts(path) == [Prompt(f"{path}:1", "first"), Prompt(f"{path}:4", '{"text": "taken as it is"}')]


def test_prompts_are_texts_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"text": "two\nlines", "id": 7}) + "\n\n" + json.dumps({"text": "ü"}) + "\n")
    assert read_prompts(path) == [Prompt(f"{path}:1", "two\nlines"), Prompt(f"{path}:3", "ü")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON: "),
        ('{"txt": "x"}', 'must be an object with a "text" that is not empty'),
        ('{"text": 7}', 'must be an object with a "text" that is not empty'),
        ('{"text": " "}', 'must be an object with a "text" that is not empty'),
        ('["x"]', 'must be an object with a "text" that is not empty'),
    ],
)
def test_a_json_line_without_text_is_named(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(PromptsError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"--prompts: {path}:2: {problem}")


def test_prompts_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"fine\n\xff\n")
    with pytest.raises(PromptsError, match=rf"^--prompts: {path} is not UTF-8: .* at byte 5$"):
        read_prompts(path)
