"""The task detection: boxes in every image, each of a class and with a score, measured by mean average precision."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..batch import Facts, hash64
from ..errors import DataError, RecipeError
from ..loading import Loader, LoaderConfig
from ..nets.detector import Detector, detector_for, pyramid_levels
from ..nets.encoder import Encoder, encoder_from_spec
from ..nets.retinanet import Detections
from ..nets.segmenter import load_encoder_into
from ..nets.task_network import TaskNetwork
from ..progress import Progress, silent
from ..store import Store
from ..views.scaling import scaled
from .config import FinetuneConfig
from .detection_anchors import finest_stride, planned_anchors
from .detection_boxes import TrueBoxes, boxed, class_names, crop_points, in_mm, true_boxes
from .detection_method import Detection
from .detection_scores import DetectionScore, Group
from .layers import add_low_rank
from .start import Design
from .task import Keep, Task

logger = logging.getLogger(__name__)

_LARGEST = {2: 256, 3: 96}
_STEP = 16


class DetectionTask(Task):
    """Boxes and their classes; measured by mAP, the mean over classes and overlaps (in mm) of average precision.

    It is a measure of all images together, and shared out among patients by the jackknife, see `metrics.shares`.
    """

    name: ClassVar[str] = "detection"
    measure: ClassVar[str] = "mAP"

    def images(self, store: Store, split: str, config: FinetuneConfig) -> tuple[str, ...]:
        """Return the images of a split in which boxes were looked for, those without any too."""
        return boxed(store, split, config.detection)

    def build(self, design: Design, store: Store, config: FinetuneConfig, images: Sequence[str]) -> Detector:
        """Build a detector for the store's classes, its pyramid and anchors planned from the boxes of these images."""
        return build_detector(design, store, config, images)

    def loader(self, network: TaskNetwork, store: Store, config: FinetuneConfig, images: Sequence[str]) -> Loader:
        """Return crops, a share of them with a box near their middle."""
        assert isinstance(network, Detector)
        crop = network.shape
        points = {
            image_id: crop_points(true_boxes(store, image_id, config.detection), store.shape(image_id), crop)
            for image_id in images
        }
        section = LoaderConfig(
            batch_size=config.batch_size, crop=crop, label_fraction=config.label_fraction, workers=config.workers
        )
        return Loader(store, section, config.seed, ids=tuple(images), points=points)

    def method(
        self, network: TaskNetwork, store: Store, config: FinetuneConfig, images: Sequence[str], facts: Facts
    ) -> Detection:
        """Return class and box losses."""
        assert isinstance(network, Detector)
        boxes = [true_boxes(store, image_id, config.detection) for image_id in images]
        return Detection(config, network, facts, boxes=boxes)

    def score(
        self,
        network: TaskNetwork,
        store: Store,
        config: FinetuneConfig,
        images: Sequence[str],
        *,
        progress: Progress = silent,
        keep: Keep | None = None,
    ) -> tuple[DetectionScore, ...]:
        """Find boxes in whole images; `keep` is given (D, 2n + 2): corners in voxels, score, class."""
        assert isinstance(network, Detector)
        scores = []
        for image_id, found in _found(network, store, images, config.mirror_axes, progress):
            truth = true_boxes(store, image_id, config.detection)
            scores.append(score_image(found, truth, store.row(image_id)))
            if keep is not None:
                table = [found.boxes, found.scores[:, None], found.classes[:, None]]
                keep(image_id, torch.cat([t.double() for t in table], 1).cpu().numpy())
        return tuple(scores)

    def look(self, network: TaskNetwork, store: Store, config: FinetuneConfig, images: Sequence[str]) -> float:
        """Return mAP without its shares and without mirroring."""
        plain = config.model_copy(update={"mirror_axes": ()})
        group = self._group(self.score(network, store, plain, images), store, config)
        return group.mean_precision(config.detection.overlaps)

    def score_from(self, value: Mapping[str, Any]) -> DetectionScore:
        """Take a score back."""
        return DetectionScore.from_dict(value)

    def table(self, scores: Sequence[DetectionScore], store: Store, config: FinetuneConfig) -> NDArray[np.float64]:
        """Return mAP shared out among patients."""
        return self._group(scores, store, config).by_patient()

    def further(self, scores: Sequence[DetectionScore], store: Store, config: FinetuneConfig) -> dict[str, float]:
        """Return the mean sensitivity at LUNA16's rates of false positives."""
        found = self._group(scores, store, config).summary()["froc"]["score"]
        return {"froc_score": math.nan if found is None else float(found)}

    def summary(self, scores: Sequence[DetectionScore], store: Store, config: FinetuneConfig) -> dict[str, Any]:
        """Return mAP by overlap and class, FROC, and what was counted; None where no image has a true box."""
        has_mm = all(store.row(score.image_id).spacing_mm is not None for score in scores)
        return {**self._group(scores, store, config).summary(), "unit": "mm" if has_mm else "voxel"}

    def lines(self, summary: Mapping[str, Any]) -> list[str]:
        """Return mAP, then a line an overlap and class, then FROC."""
        unit = "mm" if summary["unit"] == "mm" else "voxels (no spacing is known)"
        overlaps, curve = summary["overlaps"], summary["froc"]
        counted = f"{summary['images']} images, {summary['images_without_box']} of them without a box"
        lines = [f"mAP {_shown(summary['map'])}"]
        lines.append(f"the mean of overlaps {', '.join(overlaps)} in {unit}; {counted}")
        lines.append("by overlap: " + ", ".join(f"{_shown(v)} at {o}" for o, v in overlaps.items()))
        for name, values in summary["classes"].items():
            words = ", ".join(f"{_shown(v)} at {o}" for o, v in values.items())
            lines.append(f"{name} ({summary['true_boxes'][name]} true boxes): average precision {words}")
        rates = ", ".join(f"{_shown(s)} at {r:g}" for r, s in zip(curve["rates"], curve["sensitivity"]))
        lines.append(f"FROC at overlap {curve['overlap']:g}: {_shown(curve['score'])}; sensitivity by false positives ")
        lines[-1] += f"an image: {rates}"
        return lines

    def keeper(self, folder: Path, store: Store) -> Keep:
        """Keep the boxes of each image as JSON: in voxels of the store's grid, of a volume in RAS+ mm too."""

        def keep(image_id: str, found: NDArray[Any]) -> None:
            row, n = store.row(image_id), (found.shape[1] - 2) // 2
            world = row.affine is not None and n == 3
            boxes = []
            for line in found:
                box: dict[str, Any] = {"box": line[: 2 * n].tolist(), "score": float(line[-2]), "class": int(line[-1])}
                if world:
                    box["box_mm"] = world_box(line[: 2 * n], store.affine(image_id)).tolist()
                boxes.append(box)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{image_id}.json").write_text(json.dumps({"boxes": boxes}, indent=1) + "\n", encoding="utf-8")

        return keep

    def card(self, network: TaskNetwork, config: FinetuneConfig) -> str:
        """Return the classes, anchors and how it was scored."""
        assert isinstance(network, Detector)
        classes = ", ".join(f"{k} = {name}" for k, name in enumerate(network.classes))
        levels = ", ".join("x".join(map(str, level)) for level in network.levels)
        shapes = "; ".join(" x ".join(f"{v:g}" for v in one) for one in network.spec["anchors"][0])
        axes = ", ".join(str(axis) for axis in config.mirror_axes)
        mirrored = f"\n- Scored with boxes of images mirrored along axes {axes} too; the network alone does not mirror."
        return (
            f"- Classes: {classes}.\n- Pyramid: strides {levels}; anchors of the finest, in voxels: {shapes}."
            + mirrored * bool(axes)
        )

    def _group(self, scores: Sequence[DetectionScore], store: Store, config: FinetuneConfig) -> Group:
        return Group(scores, config.detection, class_names(store, config.detection))


def build_detector(design: Design, store: Store, config: FinetuneConfig, images: Sequence[str]) -> Detector:
    """Build the detector for a store's classes, and put the encoder's weights into it.

    Pyramid and anchors follow from the boxes of `images`; where none has a box, from the encoder's strides alone. The
    new weights are drawn from `config.seed` alone: with equal seeds and images, all arms begin with equal heads.

    Raises:
        DataError: the images have another number of channels than the encoder.
        RecipeError: crop and network do not fit.
    """
    rows = [store.row(image_id) for image_id in images]
    channels, axes = {row.channels for row in rows}, len(rows[0].shape)
    wanted = design.network.spec["channels"] if isinstance(design.network, Encoder) else min(channels)
    if channels != {wanted}:
        raise DataError(
            f"the images have {', '.join(map(str, sorted(channels)))} channels, the network {wanted}",
            where=str(store.folder),
            fix="prepare images with as many channels as the encoder saw",
        )
    crop = config.crop or _default_crop(design, store, images)
    if len(crop) != axes:
        raise RecipeError(
            f"boxes of {axes} axes cannot be found by a network of {len(crop)}",
            where="finetune.crop",
            fix=f"give {axes} numbers, and an encoder of as many axes",
        )
    section, levels, anchors = config.detection, *_planned(design, store, config, images, crop, wanted)
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
        torch.default_generator.manual_seed(hash64(config.seed, "detector weights") & ((1 << 63) - 1))
        detector = detector_for(
            design.network,
            class_names(store, section),
            levels=levels,
            anchors=anchors,
            width=section.pyramid_channels,
            shape=crop,
            channels=wanted,
            windows=_windows(config),
        )
    if design.encoder is not None:
        load_encoder_into(detector, design.encoder)
    if config.train == "lora":
        add_low_rank(detector, config)
    detector.preparation = dict(store.preparation)
    return detector


def _windows(config: FinetuneConfig) -> dict[str, Any]:
    """Return how boxes of whole images are put together, as `WindowDetector` takes it."""
    section = config.detection
    return {
        "overlap": config.overlap,
        "score": section.score,
        "candidates": section.candidates_per_level,
        "fusion": section.fusion,
        "fusion_overlap": section.fusion_overlap,
        "most": section.most,
    }


def _planned(
    design: Design, store: Store, config: FinetuneConfig, images: Sequence[str], crop: tuple[int, ...], channels: int
) -> tuple[list[tuple[int, ...]], list[list[list[float]]]]:
    """Return strides of the pyramid's levels, and their anchors."""
    section, n = config.detection, len(crop)
    tables = [true_boxes(store, image_id, section).corners for image_id in images]
    sides = np.concatenate([table[:, n:] - table[:, :n] for table in tables])
    if not len(sides):
        logger.warning("no training image has a box; anchors are four places long, and nothing can be learned to find")
    finest = section.finest_stride or (finest_stride(sides) if len(sides) else 4)
    levels = pyramid_levels(_strides(design, crop, channels), crop, finest=finest, count=section.levels)
    if not len(sides):
        sides = 4.0 * np.asarray(levels, dtype=np.float64)
    return levels, planned_anchors(sides, levels, section.anchors)


def _strides(design: Design, crop: tuple[int, ...], channels: int) -> tuple[tuple[int, ...], ...]:
    if isinstance(design.network, Encoder):
        return design.network.strides
    from ..nets.config import architecture

    name = design.network.name  # type: ignore[attr-defined]
    spec = {"name": name, "config": architecture(design.network), "channels": channels}
    with torch.random.fork_rng(devices=[]):
        return encoder_from_spec({**spec, "shape": list(crop), "spacing_mm": None}).strides


def _default_crop(design: Design, store: Store, images: Sequence[str]) -> tuple[int, ...]:
    """Return the crop the encoder was trained on; for a section alone, the images' middle size in whole steps."""
    if isinstance(design.network, Encoder):
        return tuple(int(n) for n in design.network.spec["shape"])
    middle = np.median([store.shape(image_id) for image_id in images], axis=0)
    return tuple(int(min(math.ceil(n / _STEP) * _STEP, _LARGEST[len(middle)])) for n in middle)


def score_image(found: Detections, truth: TrueBoxes, row: Any) -> DetectionScore:
    """Put what was found in an image beside what is there; `row` is the image's `StoreRow`."""
    boxes = in_mm(found.boxes.double().cpu().numpy(), row.spacing_mm)
    corners = in_mm(truth.corners, row.spacing_mm)
    return DetectionScore(
        row.image_id,
        row.subject_id,
        tuple(map(tuple, boxes.tolist())),
        tuple(found.scores.double().clamp(0, 1).tolist()),
        tuple(found.classes.tolist()),
        tuple(map(tuple, corners.tolist())),
        tuple(truth.classes.tolist()),
    )


def predict_mirrored(detector: Detector, image: Tensor, axes: Sequence[int]) -> Detections:
    """Return the boxes of an image and of its mirror images, turned back and put together.

    Args:
        detector: in eval mode.
        image: normalised, (1, C, *).
        axes: spatial axes, mirrored in all combinations; none asks the detector once.

    Raises:
        RecipeError: the image has no such axis.
    """
    n = image.ndim - 2
    if any(axis >= n for axis in axes):
        raise RecipeError(
            f"axis {max(axes)} cannot be mirrored in an image of {n} axes, counted from 0",
            where="finetune.mirror_axes",
            fix=f"name axes from 0 to {n - 1}",
        )
    finder, distinct = detector.windows(), sorted(set(axes))
    parts = []
    for subset in itertools.chain.from_iterable(itertools.combinations(distinct, k) for k in range(len(distinct) + 1)):
        found = finder(image.flip([axis + 2 for axis in subset]))
        boxes = found.boxes.clone()
        for axis in subset:
            size = image.shape[axis + 2]
            boxes[:, axis], boxes[:, n + axis] = size - found.boxes[:, n + axis], size - found.boxes[:, axis]
        parts.append(found._replace(boxes=boxes))
    return parts[0] if len(parts) == 1 else finder.fused(Detections(*(torch.cat(part) for part in zip(*parts))))


def _found(
    detector: Detector, store: Store, images: Sequence[str], mirror_axes: Sequence[int], progress: Progress
) -> Iterator[tuple[str, Detections]]:
    """Yield every image's id and what is found in it, with the detector in eval mode."""
    training, device = detector.training, next(detector.parameters()).device
    detector.eval()
    try:
        for done, image_id in enumerate(images):
            progress("score", done, len(images))
            voxels = torch.from_numpy(store.read(image_id))
            intensity = torch.tensor([store.row(image_id).intensity], dtype=torch.float32)
            yield image_id, predict_mirrored(detector, scaled(voxels[None], intensity).to(device), mirror_axes)
    finally:
        detector.train(training)
    progress("score", len(images), len(images))


def world_box(box: NDArray[Any], affine: NDArray[Any]) -> NDArray[np.float64]:
    """Return the box in RAS+ mm about a box (6,) of voxels, (6,): the least along the world's axes that holds it."""
    corners = np.array(list(itertools.product(*zip(box[:3], box[3:])))) - 0.5  # an affine maps voxel centres
    points = corners @ affine[:3, :3].T + affine[:3, 3]
    return np.concatenate([points.min(0), points.max(0)])


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
