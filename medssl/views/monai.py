"""Any view of ours as a MONAI transform, of arrays or of dictionaries.

`as_monai(config)` is for one array, `as_monai_dict(config, keys)` for a dictionary; the kind of the config says which
view it is. Both are MONAI's `Randomizable`: a call draws one 64-bit key from its random state, `set_random_state` gives
the same keys again, and with the key the result is that of the batched view of one sample. In a dictionary all keys
share it, so that an image and its label move alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..batch import Draw
from ..config import Section
from ..errors import UsageError
from .artefacts import (
    BiasFieldConfig,
    BlurConfig,
    CutoutConfig,
    LowResolutionConfig,
    RicianConfig,
    apply_bias_field,
    apply_blur,
    apply_cutout,
    apply_low_resolution,
    apply_rician,
    draw_bias_field,
    draw_blur,
    draw_cutout,
    draw_low_resolution,
    draw_rician,
)
from .elastic import ElasticConfig, apply_elastic, draw_elastic
from .intensity import IntensityConfig, change_intensity
from .spatial import SpatialConfig, draw_affine, warp

GEOMETRY = (SpatialConfig, ElasticConfig)
"""Views that move labels too; all others leave them as they are."""
VIEWS = (*GEOMETRY, IntensityConfig, RicianConfig, BlurConfig, LowResolutionConfig, BiasFieldConfig, CutoutConfig)
"""Configs of the views there are."""


def apply_view(
    image: Tensor, config: Section, draw: Draw, spacing: Tensor, *, mode: str = "bilinear", zero: float = 0.0
) -> Tensor:
    """Draw and apply the view that belongs to a config.

    Args:
        image: (B, C, *shape).
        config: one of `VIEWS`.
        draw: the samples' random numbers.
        spacing: (B, n) mm.
        mode: `bilinear`, or `nearest` for labels: they are moved as images are, and otherwise left alone.
        zero: the value of no signal, for noise and bias.

    Returns:
        (B, C, *shape); labels keep their dtype.

    Raises:
        UsageError: the config belongs to no view.
    """
    shape = tuple(image.shape[2:])
    if mode == "nearest" and not isinstance(config, GEOMETRY):
        return image
    if isinstance(config, SpatialConfig):
        moved = warp(image.float(), draw_affine(config, draw, len(shape)), spacing, shape, mode=mode)
        return moved.to(image.dtype) if mode == "nearest" else moved
    if isinstance(config, ElasticConfig):
        return apply_elastic(image, draw_elastic(config, draw, shape, spacing), mode=mode)
    return _appearance(image.float(), config, draw, spacing, zero)


def _appearance(image: Tensor, config: Section, draw: Draw, spacing: Tensor, zero: float) -> Tensor:
    shape = tuple(image.shape[2:])
    match config:
        case IntensityConfig():
            return change_intensity(image, config, draw)
        case RicianConfig():
            return apply_rician(image, draw_rician(config, draw, tuple(image.shape[1:])), zero=zero)
        case BlurConfig():
            return apply_blur(image, draw_blur(config, draw), spacing)
        case LowResolutionConfig():
            return apply_low_resolution(image, draw_low_resolution(config, draw, shape, spacing), down=config.down)
        case BiasFieldConfig():
            return apply_bias_field(image, draw_bias_field(config, draw, shape, spacing), zero=zero)
        case CutoutConfig():
            return apply_cutout(image, draw_cutout(config, draw, shape, spacing), spacing, fill=config.fill)
    _check(config)
    raise AssertionError("a config of VIEWS without a view")


def as_monai(
    config: Section, *, mode: str = "bilinear", spacing: Sequence[float] | None = None, zero: float = 0.0
) -> Any:
    """Make a MONAI transform of arrays (C, *shape), numpy or tensor, with 2 or 3 spatial axes.

    Args:
        config: one of `VIEWS`; its class says which view.
        mode: `bilinear`, or `nearest` for labels.
        spacing: mm between voxels; None takes a MetaTensor's `pixdim`, and refuses arrays that have none.
        zero: the value of no signal, for noise and bias.

    Returns:
        A `monai.transforms.RandomizableTransform` that returns what MONAI's own do: a MetaTensor of the same affine.

    Raises:
        UsageError: the config belongs to no view; when called: no spacing is known.
    """
    _check(config)
    return _classes()[0](config, mode, None if spacing is None else tuple(spacing), zero)


def as_monai_dict(
    config: Section,
    keys: str | Sequence[str],
    *,
    mode: str | Sequence[str] = "bilinear",
    spacing: Sequence[float] | None = None,
    zero: float = 0.0,
    allow_missing_keys: bool = False,
) -> Any:
    """Make a MONAI transform of dictionaries; all keys are changed with the same random numbers.

    Args:
        config: one of `VIEWS`.
        keys: entries to change.
        mode: `bilinear` or `nearest`, one for all keys or one each.
        spacing: as for `as_monai`.
        zero: as for `as_monai`.
        allow_missing_keys: as MONAI has it.

    Returns:
        A `monai.transforms.MapTransform` that is `Randomizable`.

    Raises:
        UsageError: the config belongs to no view, or modes and keys are not equally many.
    """
    _check(config)
    names = (keys,) if isinstance(keys, str) else tuple(keys)
    modes = (mode,) * len(names) if isinstance(mode, str) else tuple(mode)
    if len(modes) != len(names):
        raise UsageError(f"{len(modes)} modes for {len(names)} keys", where="mode", fix="give one, or one a key")
    mm = None if spacing is None else tuple(spacing)
    return _classes()[1](config, names, modes, mm, zero, allow_missing_keys)


def _check(config: Section) -> None:
    if not isinstance(config, VIEWS):
        wanted = ", ".join(one.__name__ for one in VIEWS)
        raise UsageError(f"{type(config).__name__} is not a view's config", fix=f"give one of {wanted}")


def _key(state: Any) -> Tensor:
    """Draw a key from a `numpy.random.RandomState`: (1,) int64."""
    high, low = (int(part) for part in state.randint(0, 1 << 32, size=2, dtype="uint64"))
    value = (high << 32) | low
    return torch.tensor([value - (1 << 64) if value >= 1 << 63 else value])


def _changed(data: Any, config: Section, key: Tensor, mode: str, mm: tuple[float, ...] | None, zero: float) -> Any:
    from monai.data import MetaTensor
    from monai.data.meta_obj import get_track_meta
    from monai.utils.type_conversion import convert_to_dst_type, convert_to_tensor

    image = convert_to_tensor(data, track_meta=get_track_meta())
    plain = image.as_tensor() if isinstance(image, MetaTensor) else image
    n = plain.ndim - 1
    if mm is None and isinstance(data, MetaTensor):
        mm = tuple(float(size) for size in data.pixdim[:n])
    if mm is None or len(mm) != n:
        raise UsageError(
            f"the {n} axes of an image need their spacing in mm, and {mm} is known", fix="give spacing, or a MetaTensor"
        )
    spacing = torch.tensor([mm], device=plain.device, dtype=torch.float32)
    draw = Draw(key.to(plain.device))
    out = apply_view(plain[None], config, draw, spacing, mode=mode, zero=zero)[0]
    return convert_to_dst_type(out, dst=image, dtype=out.dtype)[0]


@cache
def _classes() -> tuple[Any, Any]:
    """Make the two classes when MONAI is first needed."""
    from monai.transforms import MapTransform, RandomizableTransform
    from monai.utils.enums import TransformBackends

    class ArrayView(RandomizableTransform):  # type: ignore[misc]
        backend = (TransformBackends.TORCH,)

        def __init__(self, config: Section, mode: str, spacing: tuple[float, ...] | None, zero: float) -> None:
            super().__init__(1.0)
            self.config, self.mode, self.spacing, self.zero = config, mode, spacing, zero
            self.key = torch.zeros(1, dtype=torch.int64)

        def randomize(self, data: Any = None) -> None:
            self.key = _key(self.R)

        def __call__(self, img: Any, randomize: bool = True) -> Any:
            if randomize:
                self.randomize()
            return _changed(img, self.config, self.key, self.mode, self.spacing, self.zero)

        def __reduce__(self) -> Any:
            return _restored, (0, (self.config, self.mode, self.spacing, self.zero), self.__dict__)

    class DictView(RandomizableTransform, MapTransform):  # type: ignore[misc]
        backend = (TransformBackends.TORCH,)

        def __init__(
            self,
            config: Section,
            keys: tuple[str, ...],
            modes: tuple[str, ...],
            spacing: tuple[float, ...] | None,
            zero: float,
            allow_missing_keys: bool,
        ) -> None:
            MapTransform.__init__(self, keys, allow_missing_keys)
            RandomizableTransform.__init__(self, 1.0)
            self.config, self.modes, self.spacing, self.zero = config, modes, spacing, zero
            self.key = torch.zeros(1, dtype=torch.int64)

        def randomize(self, data: Any = None) -> None:
            self.key = _key(self.R)

        def __call__(self, data: Mapping[Hashable, Any], randomize: bool = True) -> dict[Hashable, Any]:
            if randomize:
                self.randomize()
            out = dict(data)
            for key, mode in self.key_iterator(out, self.modes):
                out[key] = _changed(out[key], self.config, self.key, mode, self.spacing, self.zero)
            return out

        def __reduce__(self) -> Any:
            given = (self.config, self.keys, self.modes, self.spacing, self.zero, self.allow_missing_keys)
            return _restored, (1, given, self.__dict__)

    return ArrayView, DictView


def _restored(which: int, given: tuple[Any, ...], state: dict[str, Any]) -> Any:
    """Make a transform anew where it was pickled to: worker processes."""
    out = _classes()[which](*given)
    out.__dict__.update(state)
    return out
