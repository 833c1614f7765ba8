"""What a checkpoint's fingerprint notices, and what it does not depend on."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fiddler.checkpoint import Checkpoint
from tests.support import checkpoints
from tests.support.tampering import SINGLE_FILE, edit_config, edit_header, flip_byte


class TestFingerprint:
    def test_is_stable_across_processes(self, mixtral: Path) -> None:
        code = "import sys; from fiddler.checkpoint import *; print(Checkpoint.open(sys.argv[1]).fingerprint)"
        command = [sys.executable, "-c", code, str(mixtral)]
        other = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
        assert other.stdout.strip() == Checkpoint.open(mixtral).fingerprint
        assert len(other.stdout.strip()) == 64

    def test_does_not_depend_on_where_the_checkpoint_lies(self, mixtral: Path) -> None:
        before = Checkpoint.open(mixtral).fingerprint
        assert Checkpoint.open(mixtral.rename(mixtral.with_name("moved"))).fingerprint == before

    def test_notices_the_config(self, mixtral: Path) -> None:
        before = Checkpoint.open(mixtral).fingerprint
        edit_config(mixtral, rms_norm_eps=1e-3)
        assert Checkpoint.open(mixtral).fingerprint != before

    def test_notices_a_header(self, mixtral: Path) -> None:
        before = Checkpoint.open(mixtral).fingerprint
        edit_header(mixtral / SINGLE_FILE, lambda header: header.update(__metadata__={"format": "other"}))
        assert Checkpoint.open(mixtral).fingerprint != before

    def test_notices_a_file_name(self, mixtral: Path) -> None:
        checkpoints.shard(mixtral, 2)
        before = Checkpoint.open(mixtral).fingerprint
        old, new = "model-00002-of-00002.safetensors", "model-00002-of-00003.safetensors"
        (mixtral / old).rename(mixtral / new)
        index = mixtral / "model.safetensors.index.json"
        index.write_text(index.read_text().replace(old, new))
        assert Checkpoint.open(mixtral).fingerprint != before

    @pytest.mark.parametrize("place", ["start", "middle"])
    def test_notices_bytes_of_one_tensor(self, mixtral: Path, place: str) -> None:
        checkpoint = Checkpoint.open(mixtral)
        before = checkpoint.fingerprint
        begin, end = checkpoint.layers[2].experts[7].down.span_bytes
        flip_byte(mixtral / SINGLE_FILE, begin if place == "start" else begin + (end - begin) // 2)
        assert checkpoint.fingerprint == before  # computed once
        assert Checkpoint.open(mixtral).fingerprint != before

    def test_notices_dense_tensors(self, mixtral: Path) -> None:
        before = Checkpoint.open(mixtral).fingerprint
        tensors = load_file(mixtral / SINGLE_FILE)
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        tensors["model.norm.weight"][0] += 1
        save_file(tensors, mixtral / SINGLE_FILE, {"format": "pt"})
        assert Checkpoint.open(mixtral).fingerprint != before
