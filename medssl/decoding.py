"""Decoding boxes of a b2nd file outside the interpreter's lock, so that threads decode side by side.

`blosc2.NDArray.get_slice_numpy` holds the lock while it decodes (python-blosc2 4.14, `blosc2_ext.pyx`): worker threads
would take turns, and halt training. Here the C library that comes with blosc2 is called by ctypes, which lets go of
the lock. Where the library is not found, blosc2's own way serves: slower with threads, equal in what it reads.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class ArrayFile(Protocol):
    """An open array; not to be used by two threads at once, for decoding keeps state in it."""

    def read_into(self, out: Array, start: Sequence[int]) -> None:
        """Decode the box at `start` of `out`'s shape into `out`, C-contiguous and of the file's dtype.

        Raises:
            RuntimeError: the file is damaged.
        """


def open_array(path: Path) -> ArrayFile:
    """Open a b2nd file for reading.

    Raises:
        RuntimeError: it is none.
    """
    library = _library()
    return _Plain(path) if library is None else _Native(path, library)


class _Native:
    def __init__(self, path: Path, library: Any) -> None:
        with path.open("rb") as file:
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise RuntimeError("the file is empty") from error
        self._library, self._bytes = library, np.frombuffer(mapped, dtype=np.uint8)
        array = ctypes.c_void_p()
        if library.b2nd_from_cframe(self._bytes.ctypes.data, len(self._bytes), False, ctypes.byref(array)) < 0:
            raise RuntimeError("the file holds no array")
        self._array = array
        # The mapped bytes are an argument so that they outlive the array that points into them.
        weakref.finalize(self, _free, library, array, self._bytes)

    def read_into(self, out: Array, start: Sequence[int]) -> None:
        numbers = ctypes.c_int64 * len(start)
        first, size = numbers(*start), numbers(*out.shape)
        stop = numbers(*(a + n for a, n in zip(start, out.shape)))
        if self._library.b2nd_get_slice_cbuffer(self._array, first, stop, out.ctypes.data, size, out.nbytes) < 0:
            raise RuntimeError("the array cannot be decoded")


def _free(library: Any, array: ctypes.c_void_p, _bytes: Array) -> None:
    library.b2nd_free(array)


class _Plain:
    def __init__(self, path: Path) -> None:
        import blosc2

        self._array = blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})

    def read_into(self, out: Array, start: Sequence[int]) -> None:
        self._array.get_slice_numpy(out, (tuple(start), tuple(a + n for a, n in zip(start, out.shape))))


@cache
def _library() -> Any:
    """Return the C library of the installed blosc2, ready for use; None where it has none."""
    import blosc2

    name = {"linux": "libblosc2.so", "darwin": "libblosc2.dylib", "win32": "libblosc2.dll"}.get(sys.platform, "")
    path = Path(blosc2.__file__).parent / "lib" / name
    if not name or not path.is_file():
        return None
    try:
        library = ctypes.CDLL(str(path))
        numbers, pointer = ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p
        library.b2nd_from_cframe.argtypes = [pointer, ctypes.c_int64, ctypes.c_bool, ctypes.POINTER(pointer)]
        library.b2nd_get_slice_cbuffer.argtypes = [pointer, numbers, numbers, pointer, numbers, ctypes.c_int64]
        library.b2nd_free.argtypes = [pointer]
        library.blosc2_init()
    except (OSError, AttributeError):
        return None
    return library
