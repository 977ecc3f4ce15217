"""export_run: from a run to what others use."""

from __future__ import annotations

import importlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import DataError, UsageError
from ..files import new_folder

Target = Literal["encoder", "monai-bundle"]

_BUNDLES = {
    "segmenter": ("bundle", "write_bundle"),
    "detector": ("detector_bundle", "write_detector_bundle"),
    "classifier": ("classifier_bundle", "write_classifier_bundle"),
}
"""What writes the bundle of each kind of network."""


@dataclass(frozen=True)
class ExportResult:
    """What was written, and how to use it."""

    out: Path
    """The folder."""
    to: str
    """`encoder` or `monai-bundle`."""
    files: tuple[str, ...]
    """Its files, relative to it."""
    use: str
    """One line that uses it."""

    def __str__(self) -> str:
        return f"{self.to} written to {self.out} ({len(self.files)} files)\nuse it: {self.use}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"out": str(self.out), "to": self.to, "files": list(self.files), "use": self.use}


def export_run(run: Path | str, to: Target, out: Path | str) -> ExportResult:
    """Write the network of a run in the form others use; it is loaded and checked on the way.

    Args:
        run: folder of a pretraining run (for `encoder`) or of a fine-tuned one (for `monai-bundle`), or the network's
            own folder.
        to: `encoder`, the folder `medssl.load_encoder` reads, whose `model.safetensors` loads strictly into MONAI's own
            class; or `monai-bundle`, which runs where MONAI is installed and medssl is not.
        out: a new folder.

    Raises:
        UsageError: `to` is unknown.
        DataError: the run holds no such network.
        WeightsError: its weights are incomplete.
        MedsslError: `out` exists, or cannot be written.
    """
    from ..nets.encoder import network_folder, network_kind

    if to not in get_args(Target):
        raise UsageError(f"medssl exports to {' or '.join(get_args(Target))}, not to {to!r}")
    out = Path(out)
    wanted = ("encoder",) if to == "encoder" else tuple(_BUNDLES)
    folder = network_folder(run, wanted)
    kind = network_kind(folder)
    if kind not in wanted:
        raise DataError(
            f"a network of kind {kind} cannot become {to}",
            where=str(folder),
            fix="name a pretraining run" if to == "encoder" else "export to encoder",
        )
    with new_folder(out) as temporary:
        if to == "encoder":
            _write_encoder(folder, temporary)
            use = f"medssl.load_encoder({str(out)!r})"
        else:
            module, function = _BUNDLES[kind]
            getattr(importlib.import_module(f".{module}", __package__), function)(folder, temporary)
            use = f"cd {shlex.quote(str(out))} && python -m monai.bundle run "
            use += "--config_file configs/inference.json --dataset_dir IMAGES"
        files = tuple(sorted(p.relative_to(temporary).as_posix() for p in temporary.rglob("*") if p.is_file()))
    return ExportResult(out, to, files, use)


def _write_encoder(folder: Path, out: Path) -> None:
    from ..nets.encoder import load_encoder, save_network

    encoder = load_encoder(folder)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {encoder.spec['name']}\n"
    save_network(out, encoder, preparation=encoder.preparation, card=text)
