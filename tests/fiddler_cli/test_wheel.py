"""The wheel, built without a compiler and installed in an environment of its own: what a newcomer types first.

FIDDLER_TEST_PYTHONS names interpreters of other versions that have the dependencies: all is tried with each of them.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fiddler_checkup.packages import PACKAGES
from tests.support.newer_pythons import dependencies_of, with_dependencies
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 240
KEPT = ("PATH", "TMPDIR", "LANG", "XDG_CACHE_HOME", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Variables that a newcomer may have: none of this project's."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this tree, with an environment in which there is no compiler."""
    pytest.importorskip("scikit_build_core", reason="an old environment lacks it; `make setup` installs it")
    directory = tmp_path_factory.mktemp("wheel")
    tools = [str(Path(sys.executable).parent), os.environ["PATH"]]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [*command, "--config-settings", f"build-dir={directory / 'build'}", "--wheel-dir", str(directory), str(ROOT)],
        env={**os.environ, "PATH": os.pathsep.join(tools), "CXX": "/no/compiler"},
        check=True,
        timeout=WAIT_SECONDS,
    )
    (built,) = directory.glob("*.whl")
    return built


class Newcomer:
    """An environment with the wheel in it, and a directory that has nothing to do with the project."""

    def __init__(self, directory: Path, wheel: Path, python: str) -> None:
        subprocess.run([python, "-m", "venv", "--without-pip", str(directory / "venv")], check=True)
        self.bin = directory / "venv" / "bin"
        self.directory = directory / "elsewhere"
        self.directory.mkdir()
        for name in ("pair", "gpu_service", "queue"):  # of the newcomer's own, with names that the services import
            (self.directory / f"{name}.py").write_text("raise SystemExit('a file of the current directory')\n")
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, timeout=WAIT_SECONDS)
        (self.packages,) = (directory / "venv" / "lib").glob("python*/site-packages")
        # the dependencies, but not this repository, whose own .pth file is not read in a directory that one names
        (self.packages / "dependencies.pth").write_text(dependencies_of(python) + "\n")
        self.environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.environment["HOME"] = str(directory)
        self.ports = {name: free_port() for name in ("listen", "http-listen", "gpu-metrics-port", "cpu-metrics-port")}

    @property
    def serve_arguments(self) -> list[str]:
        """Free ports, and little output."""
        addresses = [
            f"--{name}={'127.0.0.1:' if name.endswith('listen') else ''}{port}" for name, port in self.ports.items()
        ]
        return ["--device", "cpu", "--log-level", "warning", *addresses]

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Runs `fiddler` to its end."""
        return subprocess.run(
            [self.bin / "fiddler", *arguments],
            cwd=self.directory,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )

    @contextlib.contextmanager
    def serving(self) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
        """`fiddler serve demo` while it serves, and its log."""
        log = self.directory / "log"
        command = [str(self.bin / "fiddler"), "serve", "demo", *self.serve_arguments]
        with (
            log.open("wb") as stderr,
            subprocess.Popen(command, cwd=self.directory, env=self.environment, stderr=stderr) as process,
        ):
            try:
                deadline = time.monotonic() + WAIT_SECONDS
                while "fiddler: OpenAI: " not in log.read_text():
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.1)
                yield process, log
            finally:
                process.terminate()


@pytest.fixture(scope="module", params=[sys.executable, *with_dependencies()])
def newcomer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Newcomer:
    return Newcomer(tmp_path_factory.mktemp("newcomer"), wheel, request.param)


def test_the_wheel_holds_the_packages_and_the_demo_model(wheel: Path) -> None:
    assert wheel.name.startswith("fiddler_moe-")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert {"fiddler/demo/model.safetensors", "fiddler/demo/README.md"} <= set(names)
    assert not [name for name in names if name.endswith((".cpp", ".h", ".so"))]
    assert wheel.stat().st_size < 16 * 2**20


def test_mistakes_that_a_newcomer_makes_are_one_line(newcomer: Newcomer) -> None:
    target = f"127.0.0.1:{newcomer.ports['listen']}"
    weights = newcomer.directory / "weights"
    weights.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        (weights / name).write_text("{}")
    for arguments, status, words in (
        (["serv", "demo"], 2, "No such command 'serv'"),
        (["serve"], 2, "Missing argument 'MODEL'"),
        (["serve", "demo2"], 1, "demo2 does not exist"),
        (["bench"], 2, "give MODEL, or --target of a server that runs, and not both"),
        (["bench", "weights"], 1, "weights holds no safetensors file, only pytorch_model.bin. Convert it: python -c "),
        (["doctor", "demo"], 2, "unexpected extra argument"),
        (["chat", "--target", target], 3, target),
    ):
        done = newcomer.run(*arguments)
        assert done.returncode == status, done.stderr
        assert done.stderr.startswith("fiddler: ")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_the_doctor_looks_at_the_machine_and_says_what_is_missing(newcomer: Newcomer) -> None:
    done = newcomer.run("doctor", "--quick", "--json")
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert done.returncode == (1 if told["problems"] else 0)
    (kernel,) = [each for each in told["findings"] if each["subject"] == "kernel"]
    assert kernel["level"] == "warning"
    assert "there was no C++ compiler at installation" in kernel["text"]
    assert "g++" in kernel["advice"]


@contextlib.contextmanager
def _overwritten(newcomer: Newcomer, package: str) -> Iterator[str]:
    """What `pip install` of another that has the same package leaves behind, and what is then said of it."""
    theirs = newcomer.packages / "other-1.0.dist-info"
    theirs.mkdir()
    (theirs / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (theirs / "RECORD").write_text(f"{package}/__init__.py,,\nother-1.0.dist-info/METADATA,,\n")
    first = newcomer.packages / package / "__init__.py"
    ours = first.read_text()
    first.write_text("class Theirs: ...\n")
    try:
        yield f"{package} also holds files of other 1.0; 1 file is missing or changed, such as {package}/__init__.py"
    finally:
        first.write_text(ours)
        shutil.rmtree(theirs)


def test_another_distribution_in_a_package_of_the_wheel_is_named(newcomer: Newcomer) -> None:
    with _overwritten(newcomer, "fiddler") as said:
        done = newcomer.run("generate", "Once")
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(f"fiddler: cannot import name .*: {said}; install .* of its own, .*\n", done.stderr)
    with _overwritten(newcomer, "client") as said:
        done = newcomer.run("doctor", "--quick", "--json")
        assert done.returncode == 1
        (found,) = [each for each in json.loads(done.stdout)["findings"] if each["subject"] == "packages"]
        assert (found["level"], found["text"]) == ("problem", said)


def test_the_demo_is_served_and_answers_without_a_clone_and_without_a_compiler(newcomer: Newcomer) -> None:
    with newcomer.serving() as (process, log):
        lines = log.read_text()
        assert "experts computed by PyTorch, which is slower" in lines
        assert "there was no C++ compiler at installation" in lines
        target = f"127.0.0.1:{newcomer.ports['listen']}"
        assert f"fiddler: chat:     fiddler chat --target {target}\n" in lines
        options = ("--target", target, "--max-tokens", "8", "--temperature", "0")
        done = newcomer.run("generate", "It was a fine morning", *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.split()) > 3
        done = newcomer.run("chat", *options, stdin="Hello\nAnd then?\n")
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 2)
        done = newcomer.run("serve", "demo", *newcomer.serve_arguments)
        assert done.returncode == 1
        assert str(newcomer.ports["listen"]) in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_SECONDS) == 0
    assert "Traceback" not in log.read_text()


def test_the_demo_is_measured(newcomer: Newcomer) -> None:
    sizes = ("--prompt", "16", "--generated", "4", "--streams", "1", "--beams", "0", "--rounds", "1")
    done = newcomer.run("bench", "demo", "--device", "cpu", *sizes)
    assert done.returncode == 0, done.stderr
    tests = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")]
    assert [tests[0], *tests[2:]] == ["test", "prefill 16", "decode 4"]
    assert done.stdout.splitlines()[-1].startswith("The largest part is ")
