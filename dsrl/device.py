"""Which device to compute on."""

from __future__ import annotations

import torch

from dsrl.errors import DsrlError


def auto_device(device: str | torch.device = "auto") -> torch.device:
    """``auto`` is the first CUDA device when there is one, else the CPU.

    Raises:
        DsrlError: when torch knows no such device, or it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise DsrlError(f"cannot compute on device '{device}': {reason}. Use auto, cpu or cuda:0.") from error
    return found
