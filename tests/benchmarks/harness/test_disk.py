"""A disk without room for what a benchmark writes: a sentence before it begins."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from benchmarks import memory, structured
from benchmarks.convert import __main__ as convert
from benchmarks.convert import exactness
from benchmarks.end_to_end import __main__ as end_to_end
from benchmarks.end_to_end import coded
from benchmarks.harness import mixtral
from benchmarks.harness.disk import check_missing, check_room
from benchmarks.metrics import __main__ as metrics
from benchmarks.peers import __main__ as peers
from benchmarks.peers.models import RECIPES, Models
from benchmarks.peers.shapes import Mixtral, Qwen3, Shape
from benchmarks.serving import __main__ as serving
from tests.support.large_checkpoint import large_bytes, mixtral_bytes, write_mixtral

Free = Callable[[int], None]
GIB = 2**30


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Free:
    """Sets what every disk has free."""
    return lambda num_bytes: monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=num_bytes))


def test_what_is_missing_needs_room_and_what_is_whole_needs_none(free: Free, tmp_path: Path) -> None:
    free(2 * GIB)
    sizes = dict.fromkeys(("one", "other"), GIB)
    with pytest.raises(typer.BadParameter) as caught:
        check_missing(tmp_path, sizes, remedy="ask for more.")
    assert str(caught.value) == (
        f"{tmp_path}: what is written there (one, other) takes 2.016 GiB, and 2 GiB are free:"
        " make room, or ask for more."
    )
    (tmp_path / "one").mkdir()
    (tmp_path / "one/tokenizer.json").touch()
    check_missing(tmp_path, sizes, remedy="")
    free(0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/tokenizer.json").touch()
    check_missing(tmp_path, sizes, remedy="")


def test_files_of_an_unfinished_checkpoint_are_written_again(free: Free, tmp_path: Path) -> None:
    path = tmp_path / "half/model-1.safetensors"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(GIB)
    sizes = {"half": GIB}
    free(20 * 2**20)
    check_missing(tmp_path, sizes, remedy="")
    free(10 * 2**20)
    with pytest.raises(typer.BadParameter, match="free"):
        check_missing(tmp_path, sizes, remedy="")


def test_a_folder_that_is_not_there_is_on_the_disk_of_its_parents(tmp_path: Path) -> None:
    check_room(tmp_path / "a/b/c", {"nothing": 0}, remedy="")


def test_sizes_are_those_of_the_files_that_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden": 256, "inner": 384, "num_layers": 2, "num_heads": 4, "vocab_size": 320}
    plain = write_mixtral(tmp_path / "plain", **shape)
    monkeypatch.setattr(mixtral, "SHAPE", shape)
    sizes = {plain: mixtral_bytes(**shape)}
    sizes |= {coded.write(plain, tmp_path / name, name): coded.num_bytes(name) for name in coded.FORMATS}
    for directory, due in sizes.items():
        assert _bytes_of(directory) == pytest.approx(due, abs=20_000)  # headers of files


def test_the_size_of_a_large_checkpoint_is_about_what_was_asked_for() -> None:
    for num_bytes in (250 * 10**6, 1500 * 10**6):
        assert large_bytes(num_bytes) == pytest.approx(num_bytes, rel=0.15)


@pytest.mark.parametrize(
    "shape",
    [
        Mixtral(hidden=256, inner=384, heads=4, vocab_size=320),
        Qwen3(hidden=256, inner=128, heads=8, experts=16, vocab_size=320),
    ],
)
def test_the_room_that_is_asked_for_the_peers_models_is_enough(shape: Shape, tmp_path: Path, free: Free) -> None:
    files = Models(tmp_path)
    files.write_checkpoints(shape)
    gguf = 2 * 2 * _bytes_of(files.plain)  # no more than twice the size in bfloat16, for all four
    needed = sum(_bytes_of(path) for path in (files.plain, *map(files.coded, RECIPES)))
    for path in tmp_path.iterdir():
        shutil.rmtree(path)
    free(needed)
    with pytest.raises(typer.BadParameter, match="--models"):
        files.check_room(shape)
    free(needed + gguf + 16 * 2**20)
    files.check_room(shape)


@pytest.mark.parametrize(
    ("run", "option"),
    [
        (lambda: end_to_end.main(formats=["int8", "int4"]), "--checkpoint"),
        (lambda: end_to_end.main(), "--checkpoint"),
        (lambda: metrics.main(models="mixtral_2_layers"), "--checkpoint"),
        (lambda: serving.main(names="mixtral_2_layers"), "--checkpoint"),
        (lambda: serving.main(names="", parts=""), "--checkpoint"),
        (lambda: structured.main(), "--checkpoint"),
        (lambda: memory.main(), "TMPDIR"),
        (lambda: convert.main(directory=None), "--directory"),
        (lambda: exactness.main(directory=None), "--directory"),
        (lambda: peers.main(models=Path("nowhere"), environment=Path("nowhere")), "--models"),
        (lambda: peers.main(model="qwen3_30b_a3b", models=Path("nowhere"), environment=Path("nowhere")), "--models"),
    ],
)
def test_a_benchmark_says_so_before_it_begins(
    run: Callable[[], None],
    option: str,
    free: Free,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    free(100 * 2**20)
    with pytest.raises(typer.BadParameter, match=rf"100 MiB are free: make room, or .*{option}$"):
        run()
    assert not capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def _bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))
