"""One self-contained HTML page a run: data, curves, the gain with its interval, pictures, provenance."""

from .overlays import Example, read_examples
from .page import ReportResult, write_report

__all__ = ["Example", "ReportResult", "read_examples", "write_report"]
