"""What leaves a run: an encoder's folder, or a segmenter's MONAI bundle."""

from .run import ExportResult, export_run

__all__ = ["ExportResult", "export_run"]
