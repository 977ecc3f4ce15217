"""Weights find their place by name, or it is said which did not; nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import files
from ..errors import WeightsError

_WRAPPERS = ("state_dict", "model", "network", "model_state_dict")


@dataclass(frozen=True)
class Receipt:
    """What became of each name when weights were loaded."""

    matched: tuple[str, ...] = ()
    """Found and loaded."""
    missing: tuple[str, ...] = ()
    """In the network, not in the file: these kept the values they had."""
    unexpected: tuple[str, ...] = ()
    """In the file, not in the network: not used."""
    reshaped: tuple[str, ...] = ()
    """In both, but of another shape, or computed anew from crop and spacing: these kept the values they had."""

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.reshaped)
        lines = [f"weights: {len(self.matched)} of {total} matched"]
        for title in ("missing", "unexpected", "reshaped"):
            if names := getattr(self, title):
                lines += [f"  {title} {len(names)}:", *(f"    {name}" for name in names)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, list[str]]:
        """Return the four lists of names."""
        return {title: list(getattr(self, title)) for title in ("matched", "missing", "unexpected", "reshaped")}


def load_weights(
    module: nn.Module,
    source: Mapping[str, Tensor] | Path | str,
    *,
    prefix_to_strip: str = "",
    allow_partial: bool = False,
    ignore: Sequence[str] = (),
    derived: Sequence[str] = (),
    where: str = "",
) -> Receipt:
    """Load weights by name into a module, which stays as it was when they do not fill it.

    Args:
        module: the network; a name that shares its tensor with a matched one counts as matched.
        source: tensors by name, a `.safetensors` file, or a `.pt` file that holds nothing but tensors.
        prefix_to_strip: start of the names in `source` to leave away; names without it are unexpected.
        allow_partial: accept that names are missing or of another shape.
        ignore: prefixes of names, in the network and in the file, that may stay without a partner (output blocks).
        derived: names that the network computes itself; their values are left alone.
        where: what messages call the source; its path unless given.

    Raises:
        WeightsError: something of the network found no weights and `allow_partial` is not set, or nothing matched.
    """
    where = where or (str(source) if isinstance(source, (str, Path)) else "the given tensors")
    given = read_weights(source) if isinstance(source, (str, Path)) else dict(source)
    names = {n[len(prefix_to_strip) :] if n.startswith(prefix_to_strip) else f"!{n}": t for n, t in given.items()}
    own = module.state_dict(keep_vars=True)
    ignored, computed = tuple(ignore), set(derived)
    take, missing, reshaped = {}, [], []
    for name, tensor in own.items():
        if ignored and name.startswith(ignored):
            continue
        if name in computed or (name in names and names[name].shape != tensor.shape):
            reshaped.append(name)
        elif name in names:
            take[name] = names[name]
        else:
            missing.append(name)
    # DynUNet has its blocks under two names each: loaded under one, they are there under the other.
    loaded = {id(own[name]) for name in take}
    aliases = [name for name in missing if id(own[name]) in loaded]
    receipt = Receipt(
        matched=(*take, *aliases),
        missing=tuple(name for name in missing if id(own[name]) not in loaded),
        unexpected=tuple(name.removeprefix("!") for name in names if name not in own and not _skip(name, ignored)),
        reshaped=tuple(reshaped),
    )
    lost = [*receipt.missing, *(name for name in receipt.reshaped if name not in computed)]
    if not receipt.matched or (lost and not allow_partial):
        raise _unfilled(receipt, lost, list(given), list(own), where)
    for name, tensor in take.items():
        with torch.no_grad():
            own[name].copy_(tensor)
    return receipt


def _skip(name: str, ignored: tuple[str, ...]) -> bool:
    return bool(ignored) and name.startswith(ignored)


def _unfilled(receipt: Receipt, lost: list[str], given: list[str], own: list[str], where: str) -> WeightsError:
    total = len(receipt.matched) + len(lost)
    reshaped = set(receipt.reshaped)
    shown = [f"{name} (other shape)" if name in reshaped else name for name in lost[:3]]
    what = f"encoder weights: {len(receipt.matched)} of {total} parameters matched; without weights: {', '.join(shown)}"
    if len(lost) > 3:
        what += f" and {len(lost) - 3} more"
    prefix = _likely_prefix(given, own)
    if prefix is not None:
        return WeightsError(
            what, where=where, fix=f'the names there start with "{prefix}": strip that (encoder.weights_prefix)'
        )
    if not receipt.matched:
        example = f'; a name there is "{given[0]}"' if given else "; there are no tensors"
        return WeightsError(what + example, where=where, fix="name weights of the same architecture")
    return WeightsError(what, where=where, fix="name weights of the same architecture, or pass --allow-partial")


def _likely_prefix(given: list[str], own: list[str]) -> str | None:
    """Return what, stripped from the given names, would make most of them the network's; None if nothing would."""
    counts: dict[str, int] = {}
    for want in own[:20]:
        for name in given:
            if name.endswith("." + want):
                prefix = name[: -len(want)]
                counts[prefix] = counts.get(prefix, 0) + 1
    best = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default=None)
    return best if best is not None and counts[best] * 2 >= min(20, len(own)) else None


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Read tensors by name from a `.safetensors` file, or from a `.pt` file without running code from it.

    Raises:
        WeightsError: the file is missing, of another kind, damaged, or holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError("the weights are not there", where=str(path), fix="check the path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in (".pt", ".pth", ".ckpt"):
        raise WeightsError(
            f"{path.suffix or 'a file without ending'} is no known kind of weights",
            where=str(path),
            fix="give .safetensors, or .pt with plain tensors",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle's protocol; what cannot be read raises
            value = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(
            "the file is damaged, or holds more than plain tensors, and is not unpickled",
            where=str(path),
            fix="save its state_dict() alone, best as .safetensors",
        ) from error
    for key in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    tensors = {str(k): v for k, v in value.items() if isinstance(v, Tensor)} if isinstance(value, Mapping) else {}
    if not tensors:
        raise WeightsError("the file holds no tensors by name", where=str(path), fix="save a state_dict()")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise WeightsError("the file is damaged or not safetensors", where=str(path), fix="copy it again") from error


def write_safetensors(
    path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write tensors in one step; equal values give equal bytes.

    Shared and transposed tensors, which safetensors refuses, are copied. All metadata stands under one key: several
    would be written in an order that changes from process to process.
    """
    from safetensors.torch import save

    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    note = {"medssl": json.dumps(dict(metadata or {}), sort_keys=True)}
    files.write_bytes(path, save(plain, metadata=note))
