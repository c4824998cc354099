"""Figures of merit of pictures, as MITS-GAN's tables have them, and the figures that it printed.

Pasqualino et al., "MITS-GAN: Safeguarding Medical Imaging from Tampering with Generative Adversarial Networks",
Comput. Biol. Med. 183 (2024), arXiv 2401.09624: Tables 1 (whole images), 2 (the square that was forged) and 3 (the
square, by alpha). Its data range, units and LPIPS window are not stated; ours are, in the names.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import visual_information_fidelity

from ctguard.core.errors import ModelError

Slice = NDArray[Any]

WINDOW_HU = (-1350.0, 150.0)
"""The lung window: 1,500 HU wide."""
FULL_RANGE = 4095.0
LPIPS_MISSING = "lpips is not installed"
METRICS = ("RMSE", "PSNR 4095", "PSNR 1500", "SSIM 4095", "SSIM 1500", "LPIPS")
"""RMSE in HU; the number is the data range, and 1500 also says that both are cut to the lung window."""

PAPER_ROWS = ("RMSE", "PSNR", "LPIPS", "SSIM")
PAPER_TABLES: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "slice": {
        "RMSE": (169.481, 194.943, 198.253, 233.780),
        "PSNR": (27.949, 21.702, 21.237, 21.469),
        "LPIPS": (0.170, 0.383, 0.226, 0.391),
        "SSIM": (0.983, 0.945, 0.970, 0.981),
    },
    "square": {
        "RMSE": (50.565, 66.061, 84.349, 79.451),
        "PSNR": (26.682, 18.854, 11.289, 18.511),
        "LPIPS": (0.372, 0.3417, 0.591, 0.346),
        "SSIM": (0.992, 0.972, 0.740, 0.866),
    },
}
"""Tables 1 and 2: real-MITS-GAN, real-TAFIM, real-MITS-GAN tampered, real-TAFIM tampered."""

PAPER_ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)
PAPER_ABLATION: dict[str, tuple[float, ...]] = {
    "RMSE": (79.026, 80.472, 81.920, 82.517, 84.349),
    "PSNR": (18.766, 17.145, 15.803, 13.562, 11.289),
    "LPIPS": (0.338, 0.377, 0.425, 0.510, 0.591),
    "SSIM": (0.881, 0.854, 0.810, 0.775, 0.740),
}
"""Table 3: of the square, real-MITS-GAN tampered."""

_SSIM_WINDOW = 7
_LEAST_VIF = 41
_LEAST_LPIPS = 32
_VIF_RANGE = 255.0


def picture_figures(real: Slice, other: Slice) -> dict[str, float]:
    """METRICS of two slices (y, x) in HU. NaN where a picture is too small, and for LPIPS without its extra.

    SSIM: 7 x 7 uniform window, K1 = 0.01, K2 = 0.03 (Wang et al., IEEE TIP 2004). LPIPS: SqueezeNet, as in the paper.
    """
    a, b = (np.asarray(one, dtype=np.float64) for one in (real, other))
    low, high = WINDOW_HU
    seen = (np.clip(a, low, high), np.clip(b, low, high))
    return {
        "RMSE": float(np.sqrt(np.mean((a - b) ** 2))),
        "PSNR 4095": psnr(a, b, FULL_RANGE),
        "PSNR 1500": psnr(*seen, high - low),
        "SSIM 4095": ssim(a, b, FULL_RANGE),
        "SSIM 1500": ssim(*seen, high - low),
        "LPIPS": lpips_distance(*seen),
    }


def psnr(a: Slice, b: Slice, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal pictures."""
    error = float(np.mean((a - b) ** 2))
    return float(10 * np.log10(data_range**2 / error)) if error > 0 else float("inf")


def ssim(a: Slice, b: Slice, data_range: float) -> float:
    """Structural similarity; NaN for pictures smaller than its window."""
    if min(a.shape) < _SSIM_WINDOW:
        return float("nan")
    found = structural_similarity(a, b, data_range=data_range, win_size=_SSIM_WINDOW)  # type: ignore[no-untyped-call]
    return float(found)


def vif(real: Slice, other: Slice) -> float:
    """Visual information fidelity in the pixel domain (Sheikh and Bovik, IEEE TIP 2006), lung window as 0..255.

    1 for equal pictures; NaN for pictures smaller than its largest filter needs.
    """
    if min(real.shape) < _LEAST_VIF:
        return float("nan")
    low, high = WINDOW_HU
    scaled = [(np.clip(one.astype(np.float64), low, high) - low) / (high - low) * _VIF_RANGE for one in (real, other)]
    target, preds = (torch.from_numpy(one)[None, None] for one in scaled)
    return float(visual_information_fidelity(preds, target))


def lpips_distance(a: Slice, b: Slice) -> float:
    """LPIPS (Zhang et al., CVPR 2018) of two slices within the lung window, grey as three channels; NaN without it."""
    network = lpips_network()
    if network is None or min(a.shape) < _LEAST_LPIPS:
        return float("nan")
    low, high = WINDOW_HU
    pair = [torch.from_numpy(2 * (one - low) / (high - low) - 1).float().expand(1, 3, -1, -1) for one in (a, b)]
    with torch.inference_mode():
        return float(network(*pair))


@lru_cache(maxsize=1)
def lpips_network() -> Any | None:
    """The network of the extra `perceptual`, None where it is not installed.

    Raises ModelError where its weights cannot be had.
    """
    try:
        module = import_module("lpips")
    except ImportError:
        return None
    try:
        return module.LPIPS(net="squeeze", verbose=False).eval()
    except OSError as error:
        raise ModelError(
            f"LPIPS is installed but its SqueezeNet cannot be fetched ({' '.join(str(error).split())})",
            remedy="fetch torchvision's squeezenet1_1 once with a network, or uninstall lpips",
        ) from error
