"""The recipe's section `probe`: how frozen features are judged."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from ..config import Section

ENCODER, RANDOM, NO_NETWORK = "encoder", "random weights", "no network"
"""The arms: what is judged, and the two controls."""


class ImageProbeConfig(Section):
    """How a target of whole images is read from frozen features."""

    images: PositiveInt | None = None
    """Labelled training images, from as many patients as possible; none takes all."""
    neighbours: PositiveInt = 10
    """Training images that vote in kNN; all, where there are fewer."""
    temperature: PositiveFloat = 0.07
    """A vote weighs exp(cosine / temperature)."""
    tokens: PositiveInt = 128
    """Cells of the coarsest map that attentive pooling looks at, at most, evenly taken."""
    heads: PositiveInt = 4
    """Queries of attentive pooling."""
    steps: PositiveInt = 200
    """Of training its queries and layer."""
    learning_rate: PositiveFloat = 0.01
    """At its first step."""


class StabilityConfig(Section):
    """Changes such as another scan of the same patient brings, and how many images are changed."""

    images: PositiveInt = 16
    """Scored images that are changed; all, where there are fewer."""
    noise: tuple[PositiveFloat, ...] = (0.05, 0.1)
    """Standard deviations of Gaussian noise, in units of the image's own."""
    shift_mm: tuple[PositiveFloat, ...] = (1.0, 3.0)
    """Millimetres by which the image is moved along every axis."""
    gamma: tuple[PositiveFloat, ...] = (0.8, 1.25)
    """Exponents of the intensity between the image's darkest and brightest voxel."""


class ProbeConfig(Section):
    """How frozen features are judged."""

    images: PositiveInt = 4
    """Labelled training images the readout is fitted on, from as many patients as possible."""
    points: PositiveInt = 2000
    """Voxels drawn from each of them, evenly from the classes in it."""
    penalty: PositiveFloat = 1e-3
    """Of the squared weights of the readout, on standardised features."""
    window: tuple[PositiveInt, ...] | None = None
    """Voxels the encoder sees at once; none takes whole images up to 96 (3D) or 256 (2D) voxels along an axis."""
    slice_axis: NonNegativeInt = 2
    """Axis of a volume along which an encoder of 2D images sees slices."""
    sigmas_mm: tuple[PositiveFloat, ...] = (1.0, 2.0, 4.0)
    """Widths of the blurs that the control without a network may use."""
    split: str = "test"
    """Images that are scored; choose anything by `validation`, never by `test`."""
    every: NonNegativeInt = 500
    """Steps between two looks during pretraining, at the validation images; 0 never looks."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    image: ImageProbeConfig = ImageProbeConfig()
    """How findings and measures of whole images are read."""
    stability: StabilityConfig = StabilityConfig()
    """How much features may change where the patient does not."""
