"""Which kernels --kernel takes: those that the native library names, whatever this CPU runs."""

from typing import NoReturn

import pytest

from cpu_expert_service.kernel_choice import KernelError, build_kernel
from cpu_expert_service.settings import Settings
from fiddler.kernels import native
from fiddler.kernels.cpus import read_topology
from fiddler.kernels.native import NativeUnavailableError


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> NoReturn:
        raise NativeUnavailableError("the native library was not built")

    monkeypatch.setattr(native, "load", fail)
    native._names.cache_clear()


def test_every_kernel_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        tiers = native.tiers()
    except NativeUnavailableError as error:
        pytest.skip(str(error))
    for kernel in ("auto", "pytorch", *tiers):
        assert Settings.load(["--model", "m", "--kernel", kernel]).kernel == kernel
    with pytest.raises(SystemExit):
        Settings.load(["--model", "m", "--kernel", "sse9"])
    known = f"auto, pytorch, {', '.join(tiers)}"
    assert capsys.readouterr().err == f"cpu_expert_service: --kernel: 'sse9' is not a kernel; known: {known}\n"


@pytest.mark.usefixtures("no_library")
def test_without_the_library_help_works_and_the_start_says_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        Settings.load(["--help"])
    assert caught.value.code == 0
    assert "--kernel" in capsys.readouterr().out
    settings = Settings.load(["--model", "m", "--kernel", "avx2"])
    with pytest.raises(KernelError, match=r"^--kernel avx2: the native library was not built$"):
        build_kernel(settings, read_topology())


def test_a_tier_that_this_cpu_lacks_is_refused_with_those_that_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        tiers = native.tiers()
    except NativeUnavailableError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("cpu_expert_service.kernel_choice.available_tiers", lambda: tiers[:1])
    settings = Settings.load(["--model", "m", "--kernel", tiers[-1]])
    with pytest.raises(KernelError, match=f"^--kernel {tiers[-1]}: this CPU runs only scalar$"):
        build_kernel(settings, read_topology())
