"""States on disk: exact when whole, and never a wrong number when damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kvcore.model.geometry import LayerKind
from kvcore.schema import UserError
from kvcore.spectrum.state import load_state, save_state, seal
from kvcore.spectrum.triangular import ACCUMULATORS

PLACES = [LayerKind(0, "key"), LayerKind(0, "value"), LayerKind(1, "key")]
CONTENT = {"model": {"revision": "abc"}, "seed": 0}


def write(folder: Path, precision: str = "standard", seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    accumulators = {
        place: ACCUMULATORS[precision](5).update(torch.randn(9 + index, 5, generator=generator))
        for index, place in enumerate(PLACES)
    }
    save_state(folder, accumulators, CONTENT, {"batches": seed})


@pytest.mark.parametrize("precision", ACCUMULATORS)
def test_a_state_comes_back_to_the_last_bit(tmp_path: Path, precision: str) -> None:
    write(tmp_path, precision)
    state = load_state(tmp_path)
    assert list(state.accumulators) == PLACES
    assert (state.content, state.progress) == (CONTENT, {"batches": 0})
    generator = torch.Generator().manual_seed(0)
    for index, place in enumerate(PLACES):
        rows = torch.randn(9 + index, 5, generator=generator)
        expected = ACCUMULATORS[precision](5).update(rows)
        assert state.accumulators[place].precision == precision
        assert torch.equal(state.accumulators[place].packed(), expected.packed())
        more = torch.ones(2, 5)
        assert torch.equal(state.accumulators[place].update(more).packed(), expected.update(more).packed())
        assert state.accumulators[place].tokens == 11 + index


def test_a_later_state_replaces_an_earlier_one(tmp_path: Path) -> None:
    write(tmp_path, seed=1)
    write(tmp_path, seed=2)
    assert load_state(tmp_path).progress == {"batches": 2}
    assert len(list(tmp_path.iterdir())) == 2


def json_of(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_an_error_and_never_a_number(tmp_path: Path, data: st.DataObject) -> None:
    write(tmp_path)
    whole = load_state(tmp_path)
    file = data.draw(st.sampled_from(sorted(tmp_path.iterdir())))
    content = file.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        damaged = content[:place]
    else:
        damaged = content[:place] + bytes([content[place] ^ (1 << data.draw(st.integers(0, 7)))]) + content[place + 1 :]
    file.write_bytes(damaged)
    if file.suffix == ".json" and json_of(file.read_bytes()) == json_of(content):
        read = load_state(tmp_path)  # only blank space was damaged
        assert all(torch.equal(read.accumulators[p].packed(), whole.accumulators[p].packed()) for p in PLACES)
    else:
        with pytest.raises(UserError, match="^the state in .* cannot be used .*; delete that folder$"):
            load_state(tmp_path)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema_version": 0}, "schema version 0, expected 1"),
        ({"accumulators": {"layers.0.query": {"kv_dim": 5, "tokens": 9, "precision": "standard"}}}, "kind 'query'"),
        ({"accumulators": {"layers.0.key": {"kv_dim": 6, "tokens": 9, "precision": "standard"}}}, r"state of \(15,\)"),
        ({"accumulators": {"layers.0.key": {"kv_dim": 5, "tokens": -1, "precision": "standard"}}}, "-1 tokens"),
        ({"accumulators": {"layers.0.key": {"kv_dim": 5, "tokens": 9, "precision": "rough"}}}, "KeyError: 'rough'"),
        ({"accumulators": {"layers.7.key": {"kv_dim": 5, "tokens": 9, "precision": "exact"}}}, "layers.7.key"),
        ({"tensors": {"file": "elsewhere.safetensors", "sha256": ""}}, "No such file"),
        ({"tensors": None}, "TypeError"),
    ],
)
def test_a_sealed_state_of_another_kind_is_refused(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    write(tmp_path)
    described = json.loads((tmp_path / "state.json").read_text())
    del described["seal"]
    described |= change
    (tmp_path / "state.json").write_text(json.dumps({"seal": seal(described), **described}))
    with pytest.raises(UserError, match=complaint):
        load_state(tmp_path)


def test_tensors_of_another_state_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(UserError, match="is not what was written"):
        load_state(tmp_path)


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the state in .*absent cannot be used \(FileNotFoundError"):
        load_state(tmp_path / "absent")
