"""The task segmentation: a label map for every image, scored label by label."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..batch import Facts, hash64
from ..errors import DataError, RecipeError
from ..loading import Loader, LoaderConfig
from ..metrics import mean_of, per_patient
from ..nets.encoder import Encoder
from ..nets.segmenter import Segmenter, load_encoder_into, segmenter_for
from ..nets.task_network import TaskNetwork
from ..prepare import PrepareConfig
from ..progress import Progress, silent
from ..store import Store
from .config import FinetuneConfig
from .layers import add_low_rank
from .plan import by_plan, planned_preparation
from .scoring import MEASURES, ImageScore, dice_on, hausdorff_of, patient_dice, score_images, table_of
from .segmentation import Segmentation
from .start import Design, labelled
from .task import Keep, Task

logger = logging.getLogger(__name__)

_LARGEST = {2: 256, 3: 96}


class SegmentationTask(Task):
    """Every voxel one class; measured by Dice, the mean over classes, images and patients."""

    name: ClassVar[str] = "segmentation"
    measure: ClassVar[str] = "Dice"

    def images(self, store: Store, split: str, config: FinetuneConfig) -> tuple[str, ...]:
        """Return the images of a split that have label maps."""
        return labelled(store, split)

    def preparation(
        self, data: Path | str, config: FinetuneConfig, prepare: PrepareConfig | None
    ) -> PrepareConfig | None:
        """Plan the spacing where `config.plan` asks for it."""
        return planned_preparation(data, prepare or PrepareConfig()) if config.plan else prepare

    def settle(self, config: FinetuneConfig, design: Design, store: Store) -> FinetuneConfig:
        """Plan crop and batch size where `config.plan` asks for it."""
        return by_plan(super().settle(config, design, store), design, store)

    def build(self, design: Design, store: Store, config: FinetuneConfig, images: Sequence[str]) -> Segmenter:
        """Build a segmenter for the store's classes."""
        return build_segmenter(design, store, config, images)

    def loader(self, network: TaskNetwork, store: Store, config: FinetuneConfig, images: Sequence[str]) -> Loader:
        """Return crops and their label maps, a share of them centred on a labelled voxel."""
        return label_loader(store, config, network.shape, images)

    def method(
        self, network: TaskNetwork, store: Store, config: FinetuneConfig, images: Sequence[str], facts: Facts
    ) -> Segmentation:
        """Return cross-entropy and Dice."""
        assert isinstance(network, Segmenter)
        return Segmentation(config, network, facts, classes=store.classes)

    def score(
        self,
        network: TaskNetwork,
        store: Store,
        config: FinetuneConfig,
        images: Sequence[str],
        *,
        progress: Progress = silent,
        keep: Keep | None = None,
    ) -> tuple[ImageScore, ...]:
        """Segment whole images; `keep` is given class numbers (*)."""
        assert isinstance(network, Segmenter)
        if strange := sorted(set(config.mirror_axes) - set(config.spatial.flips)):
            logger.warning(
                "images are mirrored along axes %s, which no training image was (finetune.spatial.flips): "
                "the network may find nothing in them",
                ", ".join(map(str, strange)),
            )
        return score_images(
            network,
            store,
            images,
            mirror_axes=config.mirror_axes,
            tolerance_mm=config.surface_tolerance_mm,
            progress=progress,
            keep=keep,
        )

    def look(self, network: TaskNetwork, store: Store, config: FinetuneConfig, images: Sequence[str]) -> float:
        """Return the Dice alone, without surfaces and mirroring."""
        assert isinstance(network, Segmenter)
        return dice_on(network, store, images)

    def score_from(self, value: Mapping[str, Any]) -> ImageScore:
        """Take a score back; a Dice that is no share raises ValueError."""
        score = ImageScore.from_dict(dict(value))
        if any(d is not None and not (math.isfinite(d) and 0 <= d <= 1) for d in score.dice):
            raise ValueError("holds a Dice that is none")
        return score

    def table(self, scores: Sequence[ImageScore], store: Store, config: FinetuneConfig) -> NDArray[np.float64]:
        """Return each patient's Dice: the mean over classes, then over its images."""
        return patient_dice(scores)

    def further(self, scores: Sequence[ImageScore], store: Store, config: FinetuneConfig) -> dict[str, float]:
        """Return the mean distance over structures that were found; in voxels where images have no spacing."""
        return {"hausdorff95_mm": float(mean_of(hausdorff_of(scores)))}

    def summary(self, scores: Sequence[ImageScore], store: Store, config: FinetuneConfig) -> dict[str, Any]:
        """Return Dice, and all measures label by label: means over patients, None where no patient has one."""
        patients = [score.subject_id for score in scores]
        means = {name: mean_of(per_patient(table_of(scores, name).T, patients).T, 0) for name in MEASURES}
        has_mm = all(store.row(score.image_id).spacing_mm is not None for score in scores)
        return {
            "dice": float(mean_of(patient_dice(scores))),
            "classes": list(store.classes),
            "labels": {
                str(value): {name: _finite(float(column[k])) for name, column in means.items()}
                for k, value in enumerate(store.classes)
            },
            "surface_tolerance": config.surface_tolerance_mm,
            "missed": sum(d is not None and h is None for s in scores for d, h in zip(s.dice, s.hausdorff95_mm)),
            "distance_unit": "mm" if has_mm else "voxel",
        }

    def lines(self, summary: Mapping[str, Any]) -> list[str]:
        """Return the Dice, then a line a label."""
        unit = "mm" if summary["distance_unit"] == "mm" else "voxels (no spacing is known)"
        lines = [f"Dice {summary['dice']:.3f}"]
        for value, measures in summary["labels"].items():
            known = {name: math.nan if number is None else number for name, number in measures.items()}
            near = f"{summary['surface_tolerance']:g} {unit.partition(' ')[0]}"
            words = [
                f"Dice {known['dice']:.3f}",
                f"95% Hausdorff {known['hausdorff95_mm']:.2f} {unit}",
                f"surface Dice {known['surface_dice']:.3f} at {near}",
            ]
            if math.isfinite(error := known["volume_error_ml"]):
                words.append(f"volume {error:+.2f} ml")
            lines.append(f"label {value}: {', '.join(words)}")
        if missed := summary["missed"]:
            lines.append(f"not counted in distances: {missed} times a structure was missed or made up whole")
        return lines

    def keeper(self, folder: Path, store: Store) -> Keep:
        """Keep segmentations as NIfTI, in the label map's own values, on the store's grid."""
        values = np.array((0, *store.classes))
        dtype = np.uint8 if values.max() < 256 else np.int16

        def keep(image_id: str, found: NDArray[Any]) -> None:
            import nibabel

            folder.mkdir(parents=True, exist_ok=True)
            picture = nibabel.Nifti1Image(values[found].astype(dtype), store.affine(image_id))
            nibabel.save(picture, folder / f"{image_id}.nii.gz")

        return keep

    def card(self, network: TaskNetwork, config: FinetuneConfig) -> str:
        """Return the classes, and how it was scored."""
        assert isinstance(network, Segmenter)
        values = ", ".join(f"{k} = {name}" for k, name in enumerate(network.labels))
        axes = ", ".join(str(axis) for axis in config.mirror_axes)
        mirrored = f"\n- Scored by the mean over images mirrored along axes {axes}; the network alone does not mirror."
        return f"- Classes: {values} (the value in the label maps it learned from)." + mirrored * bool(axes)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def build_segmenter(design: Design, store: Store, config: FinetuneConfig, images: Sequence[str]) -> Segmenter:
    """Build the task network for a store's classes, and put the encoder's weights into it.

    The new weights are drawn from `config.seed` alone: with equal seeds, all arms begin with the same output block.

    Raises:
        DataError: the images have another number of channels than the encoder.
        RecipeError: crop and network do not fit.
    """
    rows = [store.row(image_id) for image_id in images]
    channels, volumes = {row.channels for row in rows}, rows[0].kind == "volume"
    wanted = design.network.spec["channels"] if isinstance(design.network, Encoder) else min(channels)
    if channels != {wanted}:
        raise DataError(
            f"the images have {', '.join(map(str, sorted(channels)))} channels, the network {wanted}",
            where=str(store.folder),
            fix="prepare images with as many channels as the encoder saw",
        )
    crop = config.crop or _default_crop(design, store, images)
    if len(crop) == 3 and not volumes:
        raise RecipeError("a network of volumes cannot see 2D images", where="finetune.crop", fix="give two numbers")
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
        torch.default_generator.manual_seed(hash64(config.seed, "segmenter weights") & ((1 << 63) - 1))
        segmenter = segmenter_for(
            design.network,
            len(store.classes) + 1,
            labels=("background", *(f"label {value}" for value in store.classes)),
            values=(0, *store.classes),
            shape=crop,
            channels=wanted,
            overlap=config.overlap,
            slice_axis=config.slice_axis if volumes and len(crop) == 2 else None,
            decoder=config.decoder,
            deep_supervision=config.deep_supervision,
        )
    if design.encoder is not None:
        load_encoder_into(segmenter, design.encoder)
    if config.train == "lora":
        add_low_rank(segmenter, config)
    segmenter.preparation = dict(store.preparation)
    return segmenter


def _default_crop(design: Design, store: Store, images: Sequence[str]) -> tuple[int, ...]:
    """Return the crop the encoder was trained on; for a section alone, the images' middle size in whole strides."""
    if isinstance(design.network, Encoder):
        return tuple(int(n) for n in design.network.spec["shape"])
    middle = np.median([store.shape(image_id) for image_id in images], axis=0)
    step = 16
    return tuple(int(min(math.ceil(n / step) * step, _LARGEST[len(middle)])) for n in middle)


def label_loader(store: Store, config: FinetuneConfig, crop: tuple[int, ...], images: Sequence[str]) -> Loader:
    """Return crops of labelled images, an order and augmentation that `config.seed` alone decides."""
    slices: Any = config.slice_axis if len(crop) == 2 and store.row(images[0]).kind == "volume" else "none"
    section = LoaderConfig(
        batch_size=config.batch_size,
        crop=crop,
        label_fraction=config.label_fraction,
        slices=slices,
        workers=config.workers,
    )
    return Loader(store, section, config.seed, labels=True, ids=tuple(images))
