"""write_report: a run, and what was measured of its encoder, as one HTML page that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MedsslError
from ..files import write_text
from .data import open_stores, summarize
from .overlays import Example
from .probes import probe_part, read_probes
from .sections import Part, data_part, finetuning_part, pretraining_part, provenance_part
from .sources import read_result, read_run
from .words import headline, verdict

_COMPARE_KEYS = (
    "arms counts seeds split patients steps measure values further differences overall patient_values".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class ReportResult:
    """A written page."""

    out: Path
    """The HTML file."""
    verdict: str
    """What stands at its top."""
    missing: tuple[str, ...] = ()
    """A sentence for each part that is not there."""

    def __str__(self) -> str:
        return "\n".join([self.verdict, *self.missing, f"report: {self.out}"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"out": str(self.out), "verdict": self.verdict, "missing": list(self.missing)}


def write_report(
    run: Any,
    *,
    probe: Any = None,
    compare: Any = None,
    bundle: Path | str | None = None,
    store: Any = None,
    out: Path | str | None = None,
    examples: Sequence[Example] = (),
    illustration: bool = False,
) -> ReportResult:
    """Write what a run did and what it was worth as one HTML page: no script, no request, no path, no identifier.

    Args:
        run: folder of a pretraining run, or its `RunResult`.
        probe: what a probe of any kind found (dense, image, stability), its dict, or its JSON file; or several of them.
            Unless given, every `probe*.json` in the run's folder.
        compare: a `CompareResult`, its dict, the folder `medssl compare` wrote, or its `compare.json`.
        bundle: the exported bundle; its name alone is told.
        store: the store of the run, or several by the names of their streams.
        out: the file; `report.html` in the run unless given. A folder gets a `report.html`.
        examples: segmentations to show, see `read_examples`.
        illustration: say at the top that this is no evidence (the demo).

    Raises:
        DataError: `run` is no run, or what was given as a result is none.
        MedsslError: the page cannot be written.
    """
    files = read_run(run)
    probes = read_probes(probe, Path(getattr(run, "run", run)))
    compared = read_result(compare, needs=_COMPARE_KEYS, file="compare.json", command="medssl compare")
    stores = open_stores(store) if store is not None else {}
    data = summarize(stores) if stores else None
    sentences = verdict(files, data, probes.dense, compared, images=probes.images, illustration=illustration)
    parts = (
        data_part(data, files),
        pretraining_part(files),
        probe_part(probes),
        finetuning_part(compared, data, examples),
        provenance_part(files, data, Path(bundle).resolve().name if bundle is not None else ""),
    )
    target = _target(Path(getattr(run, "run", run)), out)
    title = f"{files.value('method.name', 'pretraining')} on {files.value('encoder.name', 'an encoder')}"
    head = headline(probes.dense, compared)
    html = _render(
        {"title": title, "headline": head, "verdict": sentences, "parts": parts, "illustration": illustration}
    )
    try:
        write_text(target, html)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise MedsslError(
            f"the report cannot be written: {reason}", where=str(target), fix="choose a file you may write to (--out)"
        ) from error
    return ReportResult(target, " ".join((head, *sentences)), _missing(parts))


def _target(run: Path, out: Path | str | None) -> Path:
    path = Path(out) if out is not None else run
    return path / "report.html" if path.is_dir() else path


def _missing(parts: Sequence[Part]) -> tuple[str, ...]:
    return tuple(part.missing for part in parts if part.missing)


def _marked(text: str) -> Any:
    """Escape a sentence, and set what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _render(values: Mapping[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["marked"] = _marked
    html = environment.get_template("page.html").render(values)
    # Names of folders may hold bytes that are no UTF-8.
    return html.encode("utf-8", "replace").decode("utf-8")
