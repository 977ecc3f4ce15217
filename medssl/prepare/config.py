"""The recipe's section `prepare`: what is done to every image before it is stored. Nothing heavy is imported here."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, PositiveFloat, field_validator, model_validator

from ..config import Section, no_result

ROOTS = ("monai.transforms.", "medssl.")
"""Where a transform named in a recipe may be imported from."""


class TransformConfig(Section):
    """A transform by its dotted name; every other key is an argument of it, a plain value."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": True})

    name: str
    """Such as monai.transforms.CropForeground; the roots monai.transforms and medssl are open."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """What the transform is made with; may also be written beside `name`."""

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {key: value[key] for key in ("name", "arguments") if key in value}
        beside = {key: value[key] for key in value if key not in known}
        return known | {"arguments": {**known.get("arguments", {}), **beside}}

    @field_validator("name")
    @classmethod
    def _open_root(cls, name: str) -> str:
        parts = name.split(".")
        if not name.startswith(ROOTS) or not all(part.isidentifier() and not part.startswith("_") for part in parts):
            raise ValueError(f"{name!r} is not a dotted name below {' or '.join(root[:-1] for root in ROOTS)}")
        return name

    @field_validator("arguments")
    @classmethod
    def _plain_values(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        _refuse_expressions(arguments, "arguments")
        return arguments


def _refuse_expressions(value: Any, where: str) -> None:
    """Raise ValueError for what a MONAI bundle would evaluate: expressions, references, macros, nested targets."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or key.startswith(("_", "$", "@", "%")):
                raise ValueError(f"{where}: key {key!r} is refused; arguments are plain names")
            _refuse_expressions(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_expressions(item, where)
    elif isinstance(value, str):
        if value.startswith(("$", "@", "%")):
            raise ValueError(f"{where}: {value!r} is refused; it would be evaluated")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise ValueError(f"{where}: {type(value).__name__} is no plain value")


class Window(Section):
    """Two stored values become the ends of a range; what lies beyond them is cut off."""

    name: Literal["window"] = "window"
    low: float
    """Becomes `to[0]`; in Hounsfield units for CT."""
    high: float
    """Becomes `to[1]`."""
    to: tuple[float, float] = (0.0, 1.0)
    """The range of normalised values."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not (self.low < self.high and self.to[0] < self.to[1]):
            raise ValueError(f"low must lie below high, got {self.low} to {self.high} and {self.to}")
        return self


class Percentiles(Section):
    """As `window`, with two percentiles of each image's own voxels."""

    name: Literal["percentiles"] = "percentiles"
    lower: Annotated[float, Field(ge=0, le=100)] = 0.5
    """Percentile that becomes `to[0]`."""
    upper: Annotated[float, Field(ge=0, le=100)] = 99.5
    """Percentile that becomes `to[1]`."""
    to: tuple[float, float] = (0.0, 1.0)
    """The range of normalised values."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not (self.lower < self.upper and self.to[0] < self.to[1]):
            raise ValueError(f"lower must lie below upper, got {self.lower} to {self.upper} and {self.to}")
        return self


class ZScore(Section):
    """Each image gets mean 0 and standard deviation 1, over all its voxels."""

    name: Literal["zscore"] = "zscore"


Scaling = Annotated[Window | Percentiles | ZScore, Field(discriminator="name")]


class PrepareConfig(Section):
    """What is done to every image: orientation, spacing, named transforms; and how batches will be normalised.

    Voxels are stored as they are, integers as integers; `scaling` is applied when a batch is made.
    """

    modalities: tuple[str, ...] = ()
    """Images of these modalities only, such as CT or MR, as the index has them; none takes every image."""
    orientation: Annotated[str, Field(pattern="^[RLAPSI]{3}$")] | None = "RAS"
    """Axis codes volumes are turned to; none keeps each file's own. Pictures are never turned."""
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Distance of voxels in mm that volumes are resampled to, linearly; none keeps each image's own."""
    transforms: tuple[TransformConfig, ...] = ()
    """Further transforms in their order; spatial ones are applied to the label map as well, without interpolation."""
    scaling: Scaling = Percentiles()
    """Stored values to normalised ones: window, percentiles or zscore."""
    codec: Literal["lz4", "zstd"] = no_result("lz4")
    """How voxels are compressed: lz4 is faster, zstd takes a fifth less disk."""
    workers: int = no_result(2, ge=0)
    """Processes that prepare; 0 works in this one, and so does little data."""

    @field_validator("orientation")
    @classmethod
    def _three_directions(cls, codes: str | None) -> str | None:
        if codes is not None and {frozenset("RL"), frozenset("AP"), frozenset("SI")} != {
            pair for pair in map(frozenset, ("RL", "AP", "SI")) if pair & set(codes)
        }:
            raise ValueError(f"{codes} does not name each of right-left, anterior-posterior, superior-inferior once")
        return codes
