"""What an encoder's features know before anything is fine-tuned."""

from .config import ImageProbeConfig, ProbeConfig, StabilityConfig
from .dense import DenseProbe, ProbeResult, probe_encoder
from .image import ImageProbeResult, probe_images
from .outside import OutsideEncoder, as_encoder
from .pooling import Pooler
from .stability import StabilityResult, probe_stability
from .targets import Target, read_target

__all__ = [
    "DenseProbe",
    "ImageProbeConfig",
    "ImageProbeResult",
    "OutsideEncoder",
    "Pooler",
    "ProbeConfig",
    "ProbeResult",
    "StabilityConfig",
    "StabilityResult",
    "Target",
    "as_encoder",
    "probe_encoder",
    "probe_images",
    "probe_stability",
    "read_target",
]
