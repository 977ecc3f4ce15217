"""Looking for images starts fast: readers' libraries are loaded when a file needs them."""

from __future__ import annotations

import subprocess
import sys


def test_importing_index_and_ingest_loads_no_heavy_library() -> None:
    code = (
        "import sys, medssl.index, medssl.ingest, medssl.reading, medssl.demo_data, medssl.cli.index\n"
        "print([name for name in ('torch', 'monai', 'SimpleITK', 'pydicom', 'nibabel') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"
