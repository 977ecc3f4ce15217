"""Both ways of decoding read the same, and the fast one lets other threads run."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.decoding import ArrayFile, _library, _Native, _Plain, open_array
from medssl.store import write_array


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Two channels that span several chunks, and blocks that do not divide the shape."""
    array = np.random.default_rng(0).integers(-999, 999, (2, 70, 45, 81)).astype(np.int16)
    path = tmp_path_factory.mktemp("decoding") / "array.b2nd"
    write_array(path, array)
    return path, array


@given(data=st.data())
def test_both_ways_read_the_slice(data: st.DataObject, written: tuple[Path, np.ndarray]) -> None:
    path, array = written
    start = [data.draw(st.integers(0, n - 1)) for n in array.shape]
    size = [data.draw(st.integers(1, n - a)) for n, a in zip(array.shape, start)]
    wanted = array[tuple(slice(a, a + n) for a, n in zip(start, size))]
    for file in (_Native(path, _library()), _Plain(path)):
        out = np.empty(size, array.dtype)
        file.read_into(out, start)
        np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x00" * 4096], ids=["empty", "junk", "zeros"])
def test_what_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.b2nd").write_bytes(content)
    with pytest.raises(RuntimeError):
        open_array(tmp_path / "a.b2nd")


def test_decoding_lets_other_threads_run(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 50, (1, 256, 256, 256)).astype(np.int16)
    write_array(tmp_path / "a.b2nd", array)
    assert _turns(open_array(tmp_path / "a.b2nd"), np.empty_like(array)) > 200


def _turns(file: ArrayFile, out: np.ndarray) -> int:
    """Count this thread's turns while another one decodes ten times: about one a decoding if the lock is held."""
    thread = threading.Thread(target=lambda: [file.read_into(out, (0, 0, 0, 0)) for _ in range(10)])
    before, turns = sys.getswitchinterval(), 0
    sys.setswitchinterval(1000)  # who holds the interpreter's lock keeps it until he lets go of it himself
    try:
        thread.start()
        while thread.is_alive():
            time.sleep(0)
            turns += 1
    finally:
        sys.setswitchinterval(before)
    thread.join()
    return turns
