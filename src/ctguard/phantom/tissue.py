"""From shapes to Hounsfield units on a grid: every tissue of a chest, before the scanner blurs it and adds noise.

HU of tissues: Hounsfield values at 120 kV of Schneider, Pedroni and Lomax (Phys Med Biol 41, 1996); parenchyma near
-860 HU with a gain towards the back (Verschakelen, J Comput Assist Tomogr 17, 1993).
"""

from __future__ import annotations

import numpy as np

from ctguard.core.geometry import FloatTriple
from ctguard.phantom import anatomy as shape
from ctguard.phantom import wall
from ctguard.phantom.anatomy import Anatomy
from ctguard.phantom.fields import F32, F64, Axes, blend, coarse_axis, coverage, refine, texture
from ctguard.phantom.vessels import fill_thick, fill_thin
from ctguard.phantom.vessels import trees as pulmonary_trees

COARSE_MM = 2.0
AIR, FAT, MUSCLE, LIVER, WATER, CORTEX = -1000.0, -102.0, 56.0, 58.0, 12.0, 900.0
Fields = dict[str, F64]


def coarse_fields(a: Anatomy, axes: Axes) -> Fields:
    """Signed distances (mm) of every tissue on a coarse axial grid."""
    z, y, x = axes[0][:, None, None], axes[1][:, None], axes[2]
    full = np.zeros((len(axes[0]), len(axes[1]), len(axes[2])))
    skin, muscle, cavity = wall.body(a, x, y, z)
    out = np.where(z > 0.25 * a.apex_z, shape.column(a, x, y, z, apex=True), shape.column(a, x, y, z, apex=False))
    ribs, cartilage = wall.ribs(a, x, y, z, out + 0.6 * shape.ripple(a, x, y, z))
    bone, disc, canal = wall.spine(a, x, y, z)
    blood: F64 | None = None
    lines = shape.great_vessels(a)
    for name, line in lines.items():
        if name != "oesophagus":
            d = shape.tube(x, y, z, line)
            blood = d if blood is None else np.minimum(blood, d)
    assert blood is not None
    oblique, horizontal = shape.fissures(a, x, y, z)
    fields = {
        "skin": skin,
        "muscle": muscle,
        "cavity": cavity,
        "plane": out + 0.8 * shape.ripple(a, x, y, z, 3, 9) - 10.5 - 0.1 * a.muscle,
        "dome": shape.dome(a, x, y) + 0.7 * shape.ripple(a, x, y, z, 7, 7) - z,
        "lungs": shape.lungs(a, x, y, z),
        "ribs": ribs,
        "cartilage": cartilage,
        "sternum": wall.sternum(a, x, y, z),
        "bone": bone,
        "disc": disc,
        "canal": canal,
        "shoulder": wall.shoulder(a, x, y, z),
        "heart": shape.heart_surface(a, x, y, z) + 0.5 * shape.ripple(a, x, y, z, 5, 6),
        "blood": blood + 0.25 * shape.ripple(a, x, y, z, 6, 6),
        "oesophagus": shape.tube(x, y, z, lines["oesophagus"]),
        "trachea": shape.tube(x, y, z, shape.airway_trunk(a)),
        "oblique": oblique,
        "horizontal": np.where((oblique > 0) & (x < 0), np.abs(horizontal), 50.0),
    }
    return {name: np.broadcast_to(field, full.shape) for name, field in fields.items()}


class Canvas:
    """One block of voxels being painted. axes: z, y, x in mm."""

    def __init__(self, a: Anatomy, axes: Axes, coarse_mm: FloatTriple = (COARSE_MM, COARSE_MM, COARSE_MM)) -> None:
        self.a = a
        self.axes = axes
        z, y, x = (coarse_axis(axis, step) for axis, step in zip(axes, coarse_mm, strict=True))
        self.coarse_axes: Axes = (z, y, x)
        self.coarse = coarse_fields(a, self.coarse_axes)
        self.soft = 0.9 * float(axes[2][1] - axes[2][0]) + 0.2
        self.grains: dict[int, F32] = {}
        self.hu: F32 = np.full((len(axes[0]), len(axes[1]), len(axes[2])), AIR, np.float32)

    def fine(self, name: str) -> F32:
        """A coarse field on the voxels."""
        return refine(self.coarse[name], self.coarse_axes, self.axes)

    def grain(self, kind: int, size_mm: float) -> F32:
        """A texture of this patient."""
        if kind not in self.grains:
            self.grains[kind] = texture(self.a.seed * 64 + kind, size_mm, self.axes)
        return self.grains[kind]

    def present(self, name: str) -> bool:
        """Whether any of this tissue may reach the block."""
        return bool(self.coarse[name].min() < 2.5)

    def paint(self, name: str, value: float | F32, grow_mm: float = 0.0) -> None:
        """Blend a tissue in where its signed distance is negative."""
        if self.present(name):
            blend(self.hu, coverage(self.fine(name) - np.float32(grow_mm), self.soft), value)

    def paint_bone(self, name: str, cortex_mm: float) -> None:
        """A cortical shell around trabecular bone."""
        if not self.present(name):
            return
        distance = self.fine(name)
        marrow = self.a.bone_hu + 55.0 * self.grain(5, 2.2) + 25.0 * self.grain(4, 7.0)
        thick = cortex_mm * (1 + 0.35 * self.grain(4, 7.0))
        blend(self.hu, coverage(distance, self.soft), CORTEX * 0.85)
        blend(self.hu, coverage(distance + thick, self.soft + 0.5), marrow)


def paint_chest(canvas: Canvas) -> None:
    """Chest wall, mediastinum and upper abdomen."""
    a = canvas.a
    if canvas.coarse["lungs"].max() < -3:
        return
    septa = canvas.grain(4, 7.0)
    lumps = canvas.grain(5, 2.2)
    canvas.paint("skin", 5.0, grow_mm=0.0)
    canvas.paint("skin", FAT + 7.0 * lumps + 16.0 * np.maximum(septa - 1.7, 0), grow_mm=-1.6)
    if canvas.present("muscle"):
        planes = 0.5 * np.exp(-((canvas.grain(6, 14.0) / 0.06) ** 2)) * np.clip(septa + 0.6, 0, 1.5)
        between = np.exp(-(canvas.fine("plane") ** 2)) * np.clip(0.9 + septa, 0, 1)
        share = np.clip(planes + between, 0, 1)
        canvas.paint("muscle", MUSCLE + 3.0 * lumps + 3.0 * septa - 135.0 * share)
    canvas.paint("cavity", FAT + 12.0 + 9.0 * septa, grow_mm=1.2)
    if canvas.present("dome"):
        inside = np.maximum(canvas.coarse["dome"] * -1.0 + 2.0, canvas.coarse["cavity"] + 2.0)
        left = 0.25 * a.half_width
        organ = np.where(canvas.coarse_axes[2] < left, LIVER, 46.0) * np.ones_like(inside)
        share = coverage(refine(inside, canvas.coarse_axes, canvas.axes), canvas.soft)
        blend(canvas.hu, share, refine(organ, canvas.coarse_axes, canvas.axes) + 4.0 * septa)
    if canvas.present("heart"):
        canvas.paint("heart", -85.0 + 8.0 * septa, grow_mm=3.0)
        fold = canvas.grain(7, 16.0)
        canvas.paint("heart", a.blood_hu + 5.0 + 3.0 * fold)
    canvas.paint("blood", a.blood_hu + 2.0 * lumps)
    canvas.paint("oesophagus", 34.0 + 8.0 * septa)
    canvas.paint("disc", 75.0)
    canvas.paint("canal", 28.0)
    for name, cortex_mm in (("bone", 1.1), ("shoulder", 1.6), ("sternum", 1.2)):
        canvas.paint_bone(name, cortex_mm)
    if canvas.present("ribs"):
        canvas.paint_bone("ribs", 1.3)
        gristle = np.maximum(canvas.coarse["ribs"], -canvas.coarse["cartilage"])
        share = coverage(refine(gristle, canvas.coarse_axes, canvas.axes), canvas.soft)
        blend(canvas.hu, share, 95.0 + 12.0 * lumps)


def paint_lungs(canvas: Canvas, *, detail: bool = True) -> F32:
    """Parenchyma, fissures, vessels and airways; returns the share of lung in each voxel.

    detail: False leaves out what a grid of several millimetres cannot show: fine texture, small vessels, trees.
    """
    a = canvas.a
    if not canvas.present("lungs"):
        return np.zeros_like(canvas.hu)
    distance = canvas.fine("lungs")
    share = coverage(distance, canvas.soft)
    y = canvas.axes[1].astype(np.float32)[:, None]
    value = a.lung_hu - 2.0 + a.gravity_hu_mm * y + 0.12 * a.texture_hu * canvas.grain(12, 7.0)
    value += 9.0 * canvas.grain(13, 22.0)
    if detail:
        value += a.texture_hu * canvas.grain(10, 0.7)
        value += a.capillary_hu * np.exp(-(canvas.grain(16, 2.4) ** 2 + canvas.grain(17, 2.4) ** 2) / 0.06)
    if a.emphysema > 0:
        holes = np.clip(canvas.grain(14, 9.0) + 0.6 * canvas.grain(15, 4.0) - 1.5 + a.emphysema, 0, 1)
        value -= 70.0 * holes
    value += 55.0 * np.exp(-np.maximum(-distance, 0) / 1.6)
    np.clip(value, -985, -450, out=value)
    blend(canvas.hu, share, value)
    for name, width in (("oblique", 0.7), ("horizontal", 0.6)):
        if np.abs(canvas.coarse[name]).min() < 3:
            sheet = np.clip(1.4 - np.abs(canvas.fine(name)) / width, 0, 1)
            canvas.hu += share * sheet * np.float32(a.fissure_hu) * (1 + 0.5 * canvas.grain(11, 2.6))
    if detail:
        paint_trees(canvas, share)
    return share


def paint_trees(canvas: Canvas, lung_share: F32) -> None:
    """Arteries and veins as blood, airways as wall and air."""
    a = canvas.a
    low = np.array([axis[0] for axis in canvas.axes[::-1]]) - 4
    high = np.array([axis[-1] for axis in canvas.axes[::-1]]) + 4
    arteries, veins, airways = (tree.near(low, high) for tree in pulmonary_trees(a))
    blood = np.zeros_like(canvas.hu)
    thick = np.zeros_like(canvas.hu)
    voxel = float(canvas.axes[2][1] - canvas.axes[2][0])
    for tree in (arteries, veins):
        wide = tree.radius_start > 1.1 * voxel
        fill_thin(tree.take(~wide), canvas.axes, blood)
        fill_thick(tree.take(wide), canvas.axes, thick)
    np.maximum(blood, thick, out=blood)
    np.clip(blood, 0, 1, out=blood)
    near = coverage(canvas.fine("cavity") + np.float32(1.0), 2.0)
    blend(canvas.hu, blood * np.maximum(near, 0) * np.maximum(lung_share, canvas.hu < 30), a.blood_hu)
    tissue, lumen = np.zeros_like(canvas.hu), np.zeros_like(canvas.hu)
    fill_thick(airways, canvas.axes, tissue, (1.1, 0.4))
    fill_thick(airways, canvas.axes, lumen)
    blend(canvas.hu, tissue, 20.0)
    blend(canvas.hu, lumen, -985.0)
