"""Settings every test runs under, and the data that is found by a setting."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "medssl", derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("medssl")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The larger set of real scans that does not ship, at `MEDSSL_SHARED_DATA` or beside the checkout."""
    path = Path(os.environ.get("MEDSSL_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not path.is_dir():
        message = f"the shared scans are not at {path}; set MEDSSL_SHARED_DATA"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(autouse=True)
def _site_key(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the key of the person who runs it."""
    monkeypatch.setenv("MEDSSL_KEY_FILE", str(tmp_path_factory.getbasetemp() / "site.key"))
