"""Laws of loading weights: every name is accounted for, and nothing half-loaded passes for loaded."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from medssl.errors import WeightsError
from medssl.nets.encoder import DynUNetConfig, build_encoder
from medssl.nets.weights import load_weights, read_weights, write_safetensors


def small() -> nn.Module:
    """Two layers, enough for every fate a name can have."""
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_the_receipt_names_every_parameter_of_network_and_file_once() -> None:
    source = {"0.weight": torch.ones(4, 3), "0.bias": torch.ones(9), "1.bias": torch.ones(2), "head": torch.ones(1)}
    module = small()
    receipt = load_weights(module, source, allow_partial=True)
    assert receipt.matched == ("0.weight", "1.bias")
    assert receipt.reshaped == ("0.bias",)
    assert receipt.missing == ("1.weight",)
    assert receipt.unexpected == ("head",)
    assert "missing 1:\n    1.weight" in str(receipt)
    assert receipt.to_dict()["unexpected"] == ["head"]


@pytest.mark.parametrize("lost", ["0.weight", "1.bias"])
def test_one_missing_parameter_is_an_error_and_changes_nothing(lost: str) -> None:
    module, other = small(), small()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    source = {name: tensor for name, tensor in other.state_dict().items() if name != lost}
    with pytest.raises(WeightsError, match=f"3 of 4 parameters matched; without weights: {lost}"):
        load_weights(module, source)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_wrapper_prefix_is_named_in_the_error_and_stripped_on_request() -> None:
    module, other = small(), small()
    source = {f"module.swin.{name}": tensor for name, tensor in other.state_dict().items()}
    with pytest.raises(WeightsError, match=r'0 of 4 parameters.*start with "module.swin.": strip that'):
        load_weights(module, source)
    assert len(load_weights(module, source, prefix_to_strip="module.swin.").matched) == 4
    assert torch.equal(module[0].weight, other[0].weight)


def test_weights_of_another_network_are_an_error_even_with_allow_partial() -> None:
    with pytest.raises(WeightsError, match="0 of 4 parameters matched"):
        load_weights(small(), {"conv.weight": torch.ones(1)}, allow_partial=True)


def test_ignored_names_may_lack_a_partner_on_either_side() -> None:
    module, other = small(), small()
    receipt = load_weights(module, {"0.weight": other[0].weight, "0.bias": other[0].bias}, ignore=("1.",))
    assert len(receipt.matched) == 2
    assert not receipt.missing


def test_a_tensor_with_two_names_is_there_when_one_of_them_is() -> None:
    one = build_encoder(DynUNetConfig(channels=(8, 8, 8)), channels=1, shape=(16, 16, 16))
    two = build_encoder(DynUNetConfig(channels=(8, 8, 8)), channels=1, shape=(16, 16, 16))
    source = {name: tensor for name, tensor in one.net.state_dict().items() if not name.startswith("skip_layers.")}
    receipt = load_weights(two.net, source)
    assert not receipt.missing
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("bomb-went-off",))


def test_a_pickle_with_code_is_refused_unrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": _Bomb()}, tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps({"weight": _Bomb()}))
    for name in ("evil.pt", "raw.pt"):
        with pytest.raises(WeightsError, match="not unpickled"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "bomb-went-off").exists()


def test_plain_tensors_are_read_from_pt_also_inside_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, tmp_path / "net.pt")
    assert read_weights(tmp_path / "net.pt").keys() == {"a"}


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net.h5", "absent.pt"])
def test_a_file_that_holds_no_weights_is_one_clear_line(tmp_path: Path, name: str) -> None:
    if not name.startswith("absent"):
        (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(WeightsError) as caught:
        read_weights(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_equal_weights_give_equal_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from medssl.nets.weights import write_safetensors;"
        "w = torch.arange(6.).reshape(2, 3);"
        "write_safetensors(sys.argv[1], {'b': w.T, 'a': w, 'c': w.expand(4, 2, 3)}, {'z': 1, 'a': 'x', 'm': [2]})"
    )
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_tied_and_transposed_tensors_are_written_whole(tmp_path: Path) -> None:
    w = torch.randn(3, 5)
    write_safetensors(tmp_path / "w.safetensors", {"one": w, "tied": w, "turned": w.T})
    back = read_weights(tmp_path / "w.safetensors")
    assert torch.equal(back["tied"], w)
    assert torch.equal(back["turned"], w.T)
