"""Every command of the repository reads its command line alike, and shows its docstring as it is written."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks.__main__

ROOT = Path(__file__).parents[2]
_BENCHMARKS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "benchmarks").rglob("*.py")
    if "Append = False" in path.read_text()
)
_OTHERS = (
    *("benchmarks", "benchmarks.traces.record"),
    *("benchmarks.kernel.plot", "benchmarks.orchestration.plot", "benchmarks.routing.plot"),
    *("observability.generate", "tools.protos", "tools.settings_page"),
)
# in one process, since nearly all of them import torch
_ASK_FOR_HELP = """
import contextlib, io, json, runpy, sys
shown = {}
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as exit:
            assert not exit.code, name
    shown[name] = out.getvalue()
print(json.dumps(shown))
"""


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    """What `--help` prints, by command."""
    command = [sys.executable, "-W", "ignore", "-c", _ASK_FOR_HELP, *_BENCHMARKS, *_OTHERS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", [*_BENCHMARKS, *_OTHERS])
def test_a_commands_help_is_its_docstring_line_for_line(name: str, shown: dict[str, str]) -> None:
    specification = importlib.util.find_spec(name)
    assert specification is not None
    file = Path(str(specification.origin))
    source = (file.with_name("__main__.py") if file.name == "__init__.py" else file).read_text()
    docstring = re.match(r'"""(.*?)"""', source, flags=re.DOTALL)
    assert docstring
    indented = "\n".join(f"  {line}".rstrip() for line in docstring[1].strip().splitlines())
    assert indented in "\n".join(line.rstrip() for line in shown[name].splitlines())
    assert f"`python -m {name}" in shown[name], "the help does not say how the command is called"


@pytest.mark.parametrize("name", _BENCHMARKS)
def test_a_benchmark_writes_its_results_where_it_is_asked_to(name: str, shown: dict[str, str]) -> None:
    assert re.search(r"^  --out <path> ", shown[name], flags=re.MULTILINE)
    assert re.search(r"^  --append ", shown[name], flags=re.MULTILINE)


def test_all_benchmarks_are_run_together_but_those_that_need_more_than_a_fresh_clone() -> None:
    # images needs a Docker engine, soak twenty minutes, peers other engines; convert.exactness compares no times, gpu
    # counts on an imitated one; `make routing-picture` runs routing
    apart = {"convert.exactness", "gpu.counts", "images", "peers", "routing", "soak"}
    assert {f"benchmarks.{name}" for name in benchmarks.__main__.NAMES} == set(_BENCHMARKS) - {
        f"benchmarks.{name}" for name in apart
    }


@pytest.mark.parametrize("name", ["train", "report"])
def test_a_script_of_the_demo_model_needs_no_project_on_its_path_and_asks_for_what_is_missing(
    name: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "models" / "demo" / f"{name}.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stderr
    assert "Missing option '--work'" in done.stderr
