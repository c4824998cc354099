"""The verbs of `ctguard bench`: tables of protocols.md, each a folder of CSV, JSON, Markdown and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ctguard.cli.common import AsJson, Device, Jobs, Quiet, Seed, command_line, names_of, show, torch_device, verb

Split = Annotated[Literal["train", "valid", "test"], typer.Option(help="Which patients.")]
Index = Annotated[Path, typer.Option(help="An index of scans: phantoms, or scans that are de-identified.")]
Generators = Annotated[
    str, typer.Option(help="Forgers, with commas between them: NAME, or LABEL=NAME:FOLDER for other weights.")
]
Scans = Annotated[int, typer.Option(min=1, help="The first so many of the split.")]

bench = typer.Typer(
    name="bench", help="Tables: what forgeries do, and what finds them.", no_args_is_help=True, rich_markup_mode=None
)


@bench.command(no_args_is_help=True)
@verb
def malignancy(
    data: Annotated[Path, typer.Option(help="A folder of forgeries: `ctguard synth --format plan`.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables and the figure; finished scans in it are kept.")],
    split: Split = "test",
    weights: Annotated[
        Path | None, typer.Option(help="Your own scorer, a .safetensors with its card beside it.")
    ] = None,
    jobs: Jobs = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What a malignancy scorer says of forged nodules, and how good forged tissue looks."""
    from ctguard.report.malignancy_bench import bench_malignancy

    run = bench_malignancy(data, out, split=split, weights=weights, command=command_line.get(), jobs=jobs)
    show(*run, as_json)


@bench.command(no_args_is_help=True)
@verb
def detection(
    data: Annotated[Path, typer.Option(help="Forgeries (`ctguard synth --format plan`), or slices with labels.csv.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and figures; finished scans in it are kept.")],
    detectors: Annotated[str, typer.Option(help="Names, with commas between them; all of `ctguard models`.")] = "",
    weights: Annotated[
        Path | None, typer.Option(help="Folder of DETECTOR.safetensors and cards, not the shipped ones.")
    ] = None,
    matrix: Annotated[
        Path | None, typer.Option(help="Folder of DETECTOR_on_GENERATOR.safetensors: the paper's 3 x 3 matrix.")
    ] = None,
    panels: Annotated[bool, typer.Option("--panels", help="False-alarm and robustness panels too.")] = False,
    panel_scans: Annotated[
        int | None, typer.Option(min=1, help="Scans of the panels.  [default: 30; volumetric: 100]")
    ] = None,
    split: Split = "test",
    patients: Annotated[int | None, typer.Option(min=1, help="Only the first so many of a split.")] = None,
    measure_threshold: Annotated[
        bool, typer.Option("--measure-threshold", help="From the valid split, whatever the cards say.")
    ] = False,
    device: Device = "auto",
    jobs: Jobs = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """How well detectors find forgeries, and where, by the paper's protocol and by a calibrated one."""
    from ctguard.bench.ctgan_slices import is_slices
    from ctguard.report.detection_bench import Wanted, bench_detection, bench_slices

    names = names_of(detectors)
    wanted = Wanted(names, weights, matrix, panels, panel_scans, split, patients, measure_threshold)
    run = bench_slices if is_slices(data) else bench_detection
    record, text = run(data, out, wanted, command=command_line.get(), device=torch_device(device), jobs=jobs)
    show(record, text, as_json)


@bench.command(no_args_is_help=True)
@verb
def protection(
    data: Index,
    out: Annotated[Path, typer.Option(help="Folder for tables and figures; finished scans in it are kept.")],
    protectors: Annotated[
        str, typer.Option(help="Rows, with commas between them: NAME, or NAME:steps=50:budget=3.")
    ] = "noise,ascent,seal",
    weights: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE: a protector's weights, their card beside them; each is a row.")
    ] = None,
    generators: Generators = "pix2pix,cyclegan,diffusion",
    detectors: Annotated[
        str, typer.Option(help="Names, with commas between them, or none.  [default: all of `ctguard models`]")
    ] = "",
    scorer: Annotated[Path | None, typer.Option(help="Weights of the malignancy scorer, not the shipped ones.")] = None,
    split: Split = "test",
    scans: Scans = 5,
    sites: Annotated[int, typer.Option(min=1, help="Places in lung, per scan.")] = 8,
    block_mm: Annotated[float, typer.Option("--block-mm", help="Side of the block that holds them.")] = 80.0,
    budget_hu: Annotated[float, typer.Option("--budget-hu", min=1.0, help="No voxel changes by more.")] = 5.0,
    steps: Annotated[int, typer.Option(min=1, help="ascent: how many attacks it works against.")] = 200,
    ceiling_sites: Annotated[int, typer.Option(min=0, help="Known sites per scan: the ceiling.")] = 2,
    ceiling_steps: Annotated[int, typer.Option(min=1, help="Steps of the ceiling, of 4 gradients each.")] = 10,
    removal: Annotated[
        str, typer.Option(help="Protectors of the removal panel, or none.  [default: shield, mitsgan and seal]")
    ] = "",
    removal_sites: Annotated[int, typer.Option(min=1, help="Sites per scan in the removal panel.")] = 4,
    denoiser: Annotated[
        Path | None, typer.Option(help="A torch.export program for the removal panel: HU slices (1, 1, y, x).")
    ] = None,
    retrained: Annotated[
        Path | None, typer.Option(help="Folder with the first generator's weights, trained on protected scans.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    jobs: Jobs = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """How much protectors damage forgeries, at what price, and what removes them."""
    from ctguard.report.protection_bench import Wanted, bench_protection

    wanted = Wanted(
        protectors=_names(protectors),
        weights=tuple(_pair(text) for text in weights or ()),
        generators=_names(generators),
        detectors=_names(detectors) if detectors else None,
        scorer=scorer,
        split=split,
        scans=scans,
        sites=sites,
        block_mm=block_mm,
        budget_hu=budget_hu,
        steps=steps,
        seed=seed,
        ceiling_sites=ceiling_sites,
        ceiling_steps=ceiling_steps,
        removal=_names(removal) if removal else None,
        removal_sites=removal_sites,
        denoiser=denoiser,
        retrained=retrained,
    )
    where = torch_device(device)
    record, text = bench_protection(data, out, wanted, command=command_line.get(), device=where, jobs=jobs)
    show(record, text, as_json)


@bench.command(no_args_is_help=True)
@verb
def seal(
    data: Index,
    out: Annotated[Path, typer.Option(help="Folder for tables and the figure; finished scans in it are kept.")],
    tables: Annotated[
        str,
        typer.Option(
            help="Names, with commas between them: digest, benign, size, generators, informed, oracle, whole, null, "
            "price.  [default: all]"
        ),
    ] = "",
    generators: Generators = "pix2pix,cyclegan,diffusion,identity",
    split: Split = "test",
    scans: Scans = 5,
    sites: Annotated[int, typer.Option(min=1, help="Places in lung, per scan and size, at most.")] = 20,
    keys: Annotated[int, typer.Option(min=1, help="Other keys that each scan is sealed with: the null.")] = 100,
    max_hu: Annotated[float, typer.Option("--max-hu", help="No voxel changes by more.")] = 3.0,
    share: Annotated[float, typer.Option(help="SD of the pattern over local noise.")] = 0.185,
    seed: Seed = 0,
    jobs: Jobs = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What a seal finds and misses, who forges it, what it costs."""
    from ctguard.protect.seal import SealSettings
    from ctguard.report.seal_bench import Wanted, bench_seal

    settings = SealSettings(max_hu, share)
    wanted = Wanted(names_of(tables), _names(generators), settings, split, scans, sites, keys, seed)
    record, text = bench_seal(data, out, wanted, command=command_line.get(), jobs=jobs)
    show(record, text, as_json)


@bench.command(no_args_is_help=True)
@verb
def general(
    data: Annotated[Path, typer.Option(help="Forgeries with train and test patients (`ctguard synth --format plan`).")],
    out: Annotated[Path, typer.Option(help="Folder for tables and figures; trained networks and cells are kept.")],
    images: Annotated[
        list[str] | None,
        typer.Option(help="NAME=DIR of images: real, progressive, style and latent.  [default: stand-ins, made here]"),
    ] = None,
    size: Annotated[Literal["cpu", "full"], typer.Option(help="Of patches and networks.")] = "cpu",
    steps: Annotated[int | None, typer.Option(min=1, help="Of every training.  [default: that of the size]")] = None,
    pictures: Annotated[
        int | None, typer.Option(min=8, help="General ones to learn from; to test, a quarter.  [default: of the size]")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What a detector of generated pictures knows of forged CT, and the reverse: the slides' 6 x 6 matrix."""
    from ctguard.bench.general.matrix import SCALES
    from ctguard.report.general_bench import bench_general

    folders = dict(_pair(text, "--images") for text in images or ())
    scale, where = SCALES[size].changed(steps, pictures), torch_device(device)
    record, text = bench_general(data, out, folders, scale, command=command_line.get(), seed=seed, device=where)
    show(record, text, as_json)


def _names(text: str) -> tuple[str, ...]:
    """Names between commas; "none" is none."""
    return () if text.strip() == "none" else names_of(text)


def _pair(text: str, option: str = "--weights") -> tuple[str, Path]:
    """NAME=PATH. Raises typer.BadParameter (wrong use, exit 2)."""
    name, equal, path = text.partition("=")
    if not equal or not path:
        raise typer.BadParameter(f"{text!r} is not NAME=PATH", param_hint=option)
    return name, Path(path)
