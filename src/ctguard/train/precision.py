"""Mixed precision where it is safe: a fault of a library, kept out of every training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class WideKernelsInFloat32(TorchFunctionMode):
    """3-D convolutions with a kernel wider than their input stay in float32 on a CPU.

    In bfloat16 the gradient of their weights reads memory that nobody wrote (torch 2.13 with oneDNN on a processor with
    AVX-512 BF16): it is not a number, or noise. Networks meet them in their innermost levels, where they cost nothing.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Any function of torch; only `conv3d` is looked at."""
        if func is torch.conv3d and torch.is_autocast_enabled("cpu"):
            x, weight = args[:2]
            if x.device.type == "cpu" and any(n < k for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)):
                exact: list[Any] = [value.float() if isinstance(value, torch.Tensor) else value for value in args]
                with torch.autocast("cpu", enabled=False):
                    return func(*exact, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
