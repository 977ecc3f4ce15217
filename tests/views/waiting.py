"""A mode in which an operation that makes the host wait for the device is an error."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")


class NoWaiting(TorchDispatchMode):
    """Raise where a value of a tensor decides what the host does next, or a shape."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        boolean = name in ("index", "index_put", "index_put_") and any(
            one is not None and str(one.dtype) == "torch.bool" for one in args[1]
        )
        assert not boolean, "a mask as an index waits for the device"
        assert name not in WAITS, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))
