"""Settings every test runs under, and the data that is found by a setting."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("GOMP_SPINCOUNT", "0")  # see medssl.cli.app.share_cores

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


def pytest_configure(config: pytest.Config) -> None:
    """Learn which tests show a promise: under CI none of them may be skipped."""
    import tomllib

    claims = tomllib.loads((Path(__file__).parent / "claims.toml").read_text(encoding="utf-8"))["claim"]
    config.stash[_CLAIMED] = {name for claim in claims for name in claim.get("tests", [])}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the promises whose test did not run."""
    for name in _unshown(terminalreporter, config):
        terminalreporter.write_line(f"a promise was not shown, its test was skipped: {name}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail under CI where a test that shows a promise was skipped."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and exitstatus == 0 and reporter and _unshown(reporter, session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _unshown(reporter: pytest.TerminalReporter, config: pytest.Config) -> list[str]:
    skipped = {report.nodeid.partition("[")[0] for report in reporter.getreports("skipped")}
    return sorted(skipped & config.stash[_CLAIMED])


_CLAIMED = pytest.StashKey[set[str]]()
