"""What an encoder's features know before anything is fine-tuned."""

from .dense import DenseProbe, ProbeConfig, ProbeResult, probe_encoder

__all__ = ["DenseProbe", "ProbeConfig", "ProbeResult", "probe_encoder"]
