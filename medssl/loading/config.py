"""The recipe's section `loader`: what one sample is, and how many make a step."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ..config import Section, no_result


class StreamConfig(Section):
    """One stream of samples: where its crops lie and how many stand in one sample."""

    crop: tuple[PositiveInt, ...] = Field((64, 64, 64), min_length=2, max_length=3)
    """Size of a crop in voxels: three numbers for volumes, two for pictures and for slices of volumes."""
    split: str = "train"
    """Which images to take: train, validation, test or all."""
    sampling: Literal["uniform", "foreground"] = "uniform"
    """Where crops lie: any place alike, or centred in the box around what is brighter than the image's mean."""
    label_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of samples centred on a labelled voxel, all classes alike; counts only where labels or points are given."""
    views: PositiveInt = 1
    """Crops of one image in one sample; more than one stand in an axis V behind the batch's."""
    pairs: Literal["none", "overlap", "matches"] = "none"
    """How the crops of a sample belong together: not at all, by overlap with the first, or by a table of matches."""
    overlap_min: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Least share of the first crop that every other one covers, where `pairs` is overlap."""
    slices: Literal["none", 0, 1, 2] = "none"
    """Axis along which volumes are cut into single slices; none keeps them whole."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of `loader.batch_size` among several streams, relative to the others."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.slices != "none" and len(self.crop) != 2:
            raise ValueError(f"crop needs two numbers for slices, has {len(self.crop)}")
        return self

    @property
    def crops(self) -> int:
        """Number of crops in one sample, V."""
        return self.views if self.pairs == "none" else 2 if self.pairs == "matches" else max(2, self.views)

    @property
    def stacked(self) -> bool:
        """True where a sample has an axis V."""
        return self.crops > 1


class LoaderConfig(StreamConfig):
    """How samples are cut from a store and put together."""

    batch_size: PositiveInt = 8
    """Samples of one optimiser step, over all ranks and microbatches."""
    workers: int = no_result(2, ge=0)
    """Threads that decode; 0 decodes when a batch is asked for. Does not change the samples."""
    ahead: int = no_result(3, ge=1)
    """Batches decoded ahead of the one in use. Does not change the samples."""
    streams: dict[str, StreamConfig] = Field(default_factory=dict)
    """Several streams in every step, by name; each sets its own crop and so on, and the keys above count for none."""

    def stream_sizes(self) -> dict[str, int]:
        """Return the samples a step takes of each stream; one stream is called `main`.

        Raises:
            ValueError: the weights do not divide the batch into whole samples.
        """
        if not self.streams:
            return {"main": self.batch_size}
        total = sum(stream.weight for stream in self.streams.values())
        sizes = {name: self.batch_size * stream.weight / total for name, stream in self.streams.items()}
        if any(abs(size - round(size)) > 1e-6 or round(size) < 1 for size in sizes.values()):
            shown = ", ".join(f"{name} {size:g}" for name, size in sizes.items())
            raise ValueError(f"batch_size {self.batch_size} is not shared out in whole samples: {shown}")
        return {name: round(size) for name, size in sizes.items()}

    @model_validator(mode="after")
    def _shares(self) -> Self:
        self.stream_sizes()
        return self
