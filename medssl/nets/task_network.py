"""What every task network has in common: an encoder's part, whose weights are brought, and a new part."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from .weights import Receipt


class TaskNetwork(nn.Module):
    """A network that does a task, with the pretrained weights in its `body()`."""

    kind: ClassVar[str]
    """Name of its folder in a run: `segmenter`, `detector`, `classifier`."""
    spec: dict[str, Any]
    """Plain values that rebuild it; `encoder` among them, an encoder's spec."""
    net: nn.Module
    """What is saved and exported."""
    shape: tuple[int, ...]
    """Voxels of the crop it sees in training."""
    channels: int
    """Of the image."""
    preparation: dict[str, Any]
    """What the images went through before the network saw them."""
    receipt: Receipt | None
    """How an encoder's weights were loaded, where there was one."""

    def body(self) -> nn.Module:
        """Return the part whose weights an encoder brings."""
        raise NotImplementedError(f"{type(self).__name__} must write body()")

    def new_names(self) -> tuple[str, ...]:
        """Return how names in `body()` begin that no encoder brings; an impossible name where it brings all."""
        return (" ",)

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that no encoder brings."""
        brought = {id(p) for n, p in self.body().named_parameters() if not n.startswith(self.new_names())}
        return [p for p in self.parameters() if id(p) not in brought]
