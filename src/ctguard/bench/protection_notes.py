"""What a reader of the protection tables has to know, in sentences."""

from __future__ import annotations

from ctguard.bench.protection_paper import LPIPS_MISSING, WINDOW_HU, lpips_network
from ctguard.bench.protection_tables import Results

_DAMAGE = (
    "Damage: RMSE(t(p), t(x)) in HU over the masked core of 16 mm, or over the cube of 32 mm; p is the protected scan"
    " as read back from its int16 file, and t(x) and t(p) share Plan, seed and the generator's noise. added: RMSE(p, "
    "x) over the cube. Gain: damage core over added. noise core: the same of white noise whose SD is that of p - x in"
    " the cubes of the scan's sites; times noise: damage over it. Another seed: RMSE of two forgeries of x whose "
    "noise differs. What changes a forgery into another one that is as plausible is no protection: see attack success"
    " and the detectors."
)
_RATIO = "Ratios are of means, in pairs of the same sites; rows of different SD (added) do not compare."
_SUCCESS = (
    "Attack success: the share of forgeries that move the malignancy score over its threshold, among places where it "
    "was on the other side before (n), without and with protection. Sites are drawn anywhere in lung, so most "
    "removals find nothing to remove."
)
_PRICE = (
    "Price: voxels of the block; max |d| and detectors: the whole scan. noise share: the 95th percentile over voxels "
    "of the SD of d in 10 mm squares over local noise (SD of the residual of a 3 x 3 x 3 median), in aerated "
    "parenchyma, in soft tissue (0 to 150 HU) and in the rest of the body. Spectrum: RMS over frequencies of the "
    "change of the noise power spectrum. VIF: pixel domain, whole slices through the sites, lung window. Nodules: "
    "known ones in the block, mean |change|, the diameter as a share."
)
_REMOVAL = (
    "Removal: RMSE(t(f(p)), t(f(x))) for an operation f, so that what f alone does to a forgery is no protection; "
    'that is RMSE(t(f(x)), t(x)), "operation alone". kept: over the damage of the written file, the same sites. A '
    "lossy operation that rounds x and p apart makes damage of its own: then noise of the same SD keeps as much, and "
    "times noise says what is left of the protection. A forger who denoises first is a row here; JPEG 2000 at ratios "
    "of 16-bit words."
)
_PARTIAL = (
    "Partial: protected, a run of neighbouring slices of the cube at a random place; edited, the forger pastes the "
    "middle slices of his cube alone, and damage is counted there."
)


def notes_of(results: Results, split: str) -> list[str]:
    """What a reader of the tables has to know."""
    experiment = results.experiment
    low, high = WINDOW_HU
    first = experiment.panel_forger
    lines = [
        f"Split {split}; seed {experiment.seed}; {experiment.sites} sites per scan, drawn in lung in a block of "
        f"{experiment.block_mm:g} mm, all positions equally likely; both tasks at each. The protector never saw them. "
        "Intervals: 2,000 bootstrap resamples of patients, seed 0. What works per scan (ascent, a refined shield) "
        "works on the block alone; all other protectors see the whole scan.",
        _DAMAGE,
        _RATIO,
        _SUCCESS,
        _PRICE,
        _REMOVAL,
        _PARTIAL,
        "Pictures: the slice through the site and the 32 mm square in it; PSNR and SSIM with a data range of 4,095, "
        f"and of 1,500 within the lung window ({low:g} to {high:g} HU); SSIM with 7 x 7 uniform windows; LPIPS with "
        "SqueezeNet within the window. The paper states neither its range nor its units, measured on LIDC at 512 x 512 "
        "pixels, and has no control: compare the pattern, not the digits. Forged by "
        f"{first.label if first else 'nobody: no forger has weights'}.",
    ]
    if lpips_network() is None:
        lines.append(f"LPIPS: {LPIPS_MISSING}; it comes with the extra `perceptual`.")
    for setup in experiment.setups:
        if setup.card is not None:
            lines.append(f"{setup.label}: seed {setup.card.seed}, learned from: {setup.card.data}.")
    if any("seal" in setup.protector for setup in experiment.setups):
        lines.append("What `verify` finds of a seal and what it misses has its own tables: `ctguard bench seal`.")
    lines += [f"{setup.label}: {setup.missing}." for setup in experiment.setups if setup.missing]
    lines += [f"The forger {one.label} has no weights." for one in experiment.forgers if not one.known]
    return lines
