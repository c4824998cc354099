"""What protection costs: what was added, against local noise, to the noise spectrum, at nodules, and for judges.

All voxels are those of the block, the same for every protector, and alike for what protects the block and for what
protects the whole scan; max |d| and the detectors' scores are of the whole scan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctguard.bench.judging import Judge
from ctguard.bench.protection_damage import Attempt, Values
from ctguard.bench.protection_scene import Mask, Scene
from ctguard.bench.quality import cut_surroundings, nodule_diameter_mm, spectrum_distance_db
from ctguard.cad.network import NoisyOr3d
from ctguard.cad.score import score_sites
from ctguard.cohort.nodules import mask_box_lps_mm
from ctguard.core.errors import GeometryError
from ctguard.core.geometry import FloatTriple, as_float_triple, lps_mm_to_index
from ctguard.core.volume import Volume
from ctguard.detect.infer import search_area
from ctguard.image.lung import soft_tissue_region
from ctguard.image.noise import local_sd_map, mean_frequency, noise_power_spectrum

PERCENTILE = 95
SOFT = "soft tissue"
_WINDOW_MM = 10.0
_LUNG_HU, _SOFT_HU = (-950, -500), (0, 150)
_LEAST_SD_HU = 1.0
_EVEN = 0.25
_PATCHES = (24, 16, 12)
_LEAST_MM = 3.0


def price_values(scene: Scene, p: Volume) -> Values:
    """Max |d| and SD of d in HU; the 95th percentile of local SD of d over local noise, and SD of d, by tissue; noise
    spectrum of lung and soft tissue: RMS change in decibels and change of its mean frequency in 1/mm."""
    block = scene.box.slices()
    before, after = scene.volume.hu[block].astype(np.float32), p.hu[block].astype(np.float32)
    d = after - before
    body = scene.body[block]
    ratio = noise_share(d, before, scene.volume.geometry.spacing_zyx_mm)
    whole = p.hu.astype(np.int32) - scene.volume.hu
    out = {"max": float(np.abs(whole).max()), "sd": float(d[body].std()), "sd in cubes": float(d[scene.cubes()].std())}
    for name, mask in tissues(scene.volume.hu[block], body, scene.lung[block]).items():
        known = bool(mask.any())
        out[f"sd {name}"] = float(d[mask].std()) if known else float("nan")
        out[f"noise share {name}"] = float(np.percentile(ratio[mask], PERCENTILE)) if known else float("nan")
    spacing = scene.volume.geometry.spacing_zyx_mm[1:]
    for name, region in (("lung", scene.lung), (SOFT, soft_tissue_region(scene.volume))):
        spectra = spectrum(before, spacing, region[block]), spectrum(after, spacing, region[block])
        if spectra[0] is None or spectra[1] is None:
            continue
        out[f"nps {name} db"] = spectrum_distance_db(spectra[0][1], spectra[1][1])
        out[f"nps {name} mean frequency"] = mean_frequency(*spectra[1]) - mean_frequency(*spectra[0])
    return out


def tissues(hu: NDArray[np.int16], body: Mask, lung: Mask) -> dict[str, Mask]:
    """Masks of a block: aerated parenchyma, soft tissue (0..150 HU), and all else of the body."""
    aerated = lung & (hu > _LUNG_HU[0]) & (hu < _LUNG_HU[1])
    soft = body & ~lung & (hu > _SOFT_HU[0]) & (hu < _SOFT_HU[1])
    return {"lung": aerated, SOFT: soft, "other": body & ~aerated & ~soft}


def noise_share(
    d: NDArray[np.float32], before: NDArray[np.float32], spacing_zyx_mm: FloatTriple
) -> NDArray[np.float32]:
    """SD of what was added over the local noise of the block that it was added to, in squares of 10 mm in the slice.

    The SD of d is taken as local noise is, without any median; noise below 1 HU counts as 1 HU.
    """
    size = (1, *(max(3, round(_WINDOW_MM / mm)) for mm in spacing_zyx_mm[1:]))
    mean = ndimage.uniform_filter(d, size)
    square = ndimage.uniform_filter(d * d, size)
    sd = np.sqrt(np.maximum(square - mean * mean, 0))
    return np.asarray(sd / np.maximum(local_sd_map(before, spacing_zyx_mm), _LEAST_SD_HU), dtype=np.float32)


Spectrum = tuple[NDArray[np.float64], NDArray[np.float64]]


def spectrum(hu: NDArray[np.float32], spacing_yx_mm: tuple[float, float], region: Mask) -> Spectrum | None:
    """Noise power spectrum of the most even quarter of the patches in a region; None where no patch fits."""
    for patch in _PATCHES:
        try:
            return noise_power_spectrum(hu, spacing_yx_mm, region, patch=patch, even=_EVEN)
        except GeometryError:
            continue
    return None


def nodule_values(scene: Scene, p: Volume, scorer: NoisyOr3d | None) -> list[Values]:
    """At each known nodule of the block: its diameter before and after, mm, and its malignancy score."""
    out = []
    for finding in scene.case.findings:
        center = as_float_triple(lps_mm_to_index(scene.volume.geometry, finding.center_lps_mm))
        inside = all(0 <= c - a < n for c, a, n in zip(center, scene.box.start_zyx, scene.box.shape_zyx, strict=True))
        before, after = (
            nodule_diameter_mm(cut_surroundings(scene.volume, hu, scene.lung, center)) for hu in (scene.volume.hu, p.hu)
        )
        if not inside or before < _LEAST_MM:
            continue
        values = {"diameter": before, "diameter change": abs(after - before) / before}
        if scorer is not None:
            scores = [malignancy(scene, one, center, scorer) for one in (scene.volume, p)]
            values |= {"malignancy x": scores[0], "malignancy change": abs(scores[1] - scores[0])}
        out.append(values)
    return out


def malignancy(scene: Scene, volume: Volume, center_zyx: FloatTriple, scorer: NoisyOr3d) -> float:
    """The scorer's probability of malignancy at a place."""
    box = mask_box_lps_mm(scene.volume, scene.lung)
    return float(score_sites(volume, scorer, [center_zyx], box=box)[0])


def malignancy_values(attempt: Attempt, scorer: NoisyOr3d | None) -> Values:
    """Malignancy scores of x, t(x) and t(p) at the site; nothing without a scorer."""
    if scorer is None:
        return {}
    scene = attempt.scene
    shown = {
        "x": scene.volume.hu,
        "t(x)": attempt.tx.paste(scene.volume.hu),
        "t(p)": attempt.tp.paste(attempt.p.hu),
    }
    grid, origin = scene.volume.geometry, scene.volume.provenance
    return {
        f"malignancy {name}": malignancy(scene, Volume(hu, grid, origin), attempt.place.center_zyx, scorer)
        for name, hu in shown.items()
    }


def detector_values(
    judges: Mapping[str, Judge], scene: Scene, p: Volume, tried: Sequence[Attempt]
) -> tuple[Values, list[Values]]:
    """Scores and verdicts of each detector: of the protected scan, and of each forgery of it, whole scans."""
    of_scan: Values = {}
    of_forged: list[Values] = [{} for _ in tried]
    for name, judge in judges.items():
        area = search_area(scene.volume, judge.detector)
        look = judge.look(p, area)
        of_scan |= {f"{name} score": look.score, f"{name} alarm": float(look.score >= look.threshold)}
        judge.detector.keep()
        for attempt, values in zip(tried, of_forged, strict=True):
            forged = Volume(attempt.tp.paste(p.hu), p.geometry, p.provenance)
            look = judge.look(forged, area)
            judge.detector.forget()
            values |= {f"{name} score": look.score, f"{name} found": float(look.score >= look.threshold)}
    return of_scan, of_forged
