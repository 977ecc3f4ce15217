"""What one sample is, and how samples become batches.

Batch keys of a stream (B batch, V crops of a sample where there are several, nd axes of the crop):

    image      (B, [V,] C, *crop), as stored: `views.scaling` makes it float32
    affine     (B, [V,] 4, 4) float32, voxel of the crop to RAS+ mm; the identity where an image has no geometry
    intensity  (B, [V,] 4) float32: low, high, shift, scale
    box        (B, [V,] 2, nd) int64: first voxel and one past the last that is image; the rest is padding
    start      (B, [V,] axes of the image) int64: where the crop was cut, a slice's axis last
    index      (B,) int64: the item's number; `key` (B,) int64: 64 bits of seed, stream and n; `image_id` list of str
    label      (B, [V,] 1, *crop) integers, where labels were asked for
    point      (B, 2, nd) float32 and `partner_id`, for pairs of matches: the matching points in voxels of each crop
"""

from __future__ import annotations

from .config import LoaderConfig, StreamConfig
from .loader import Loader

__all__ = ["Loader", "LoaderConfig", "StreamConfig"]
