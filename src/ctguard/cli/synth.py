"""The synth verb: from an index to a data set of forgeries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ctguard.cli.common import FAILED, AllowGaps, AsJson, Jobs, Quiet, Seed, command_line, names_of, show, table, verb

if TYPE_CHECKING:
    from ctguard.synth.summary import Summary

_REASONS = 12


@verb
def synth(
    index: Annotated[
        Path | None, typer.Argument(metavar="INDEX", help="A CSV of `ctguard index` or `phantom`.")
    ] = None,
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="A folder: new, or to be continued.")] = None,
    generators: Annotated[str, typer.Option(metavar="A,B,…", help="Generators of `ctguard models`.")] = (
        "pix2pix,cyclegan,diffusion"
    ),
    mode: Annotated[Literal["clean", "m3dsynth", "ctgan"], typer.Option(help="Which forging chain.")] = "clean",
    sites: Annotated[
        Path | None, typer.Option(metavar="TABLES", help="Replay the sites of M3Dsynth's tables in this folder.")
    ] = None,
    format: Annotated[
        Literal["plan", "dicom", "tiff"],
        typer.Option(help="Plan + changed block, DICOM series, or M3Dsynth's released layout."),
    ] = "plan",
    injections: Annotated[int, typer.Option(min=0, help="Per scan with known nodules.")] = 3,
    anywhere: Annotated[
        bool, typer.Option("--anywhere", help="Inject anywhere in lung, not at or near nodules.")
    ] = False,
    any_rating: Annotated[bool, typer.Option("--any-rating", help="Remove benign nodules too.")] = False,
    plain_sites: Annotated[
        int, typer.Option(min=0, help="In scans without known nodules: injections, and as many removals of lung.")
    ] = 0,
    weights: Annotated[Path | None, typer.Option(metavar="DIR", help="A folder of your own weights.")] = None,
    sampler: Annotated[
        Literal["ddim", "ddpm"] | None, typer.Option(help="Of the diffusion model; else its own.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of that sampler.")] = 50,
    reimpose: Annotated[
        bool, typer.Option("--reimpose", help="Put the known shell back at each of its steps.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be forged. INDEX may lack with --sites.")
    ] = False,
    cluster: Annotated[
        str | None, typer.Option(metavar="C", help="Dask: local or slurm with --jobs workers, or tcp://HOST:PORT.")
    ] = None,
    jobs: Jobs = 1,
    allow_gaps: AllowGaps = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Forge a data set, to train and measure the defence (MISUSE.md).

    Scans must be phantoms, say that they are de-identified, or be rows of LIDC-IDRI. Killed and started again, it goes
    on. A scan that fails is reported and the rest goes on; then it exits with 1.
    """
    _refuse_wrong_use(index, out, sites, dry_run)
    from ctguard.cli.common import torch_device
    from ctguard.synth.dataset import plan_synth
    from ctguard.synth.dataset import synth as forge
    from ctguard.synth.rule import DatasetRule
    from ctguard.synth.sites import SiteRule
    from ctguard.tamper.pipeline import Sampler

    rule = DatasetRule(
        generators=names_of(generators),
        mode=mode,
        format=format,
        sites=SiteRule(
            injections=injections,
            near_mm=None if anywhere else SiteRule.near_mm,
            min_malignancy=None if any_rating else SiteRule.min_malignancy,
            plain_sites=plain_sites,
        ),
        tables=sites,
        weights=weights,
        sampler=None if sampler is None else Sampler(sampler, steps, reimpose),
        allow_gaps=allow_gaps,
    )
    torch_device("cpu")
    if dry_run:
        summary = plan_synth(index, rule, seed=seed, jobs=jobs, cluster=cluster)
    elif index is not None and out is not None:
        summary = forge(index, out, rule, seed=seed, jobs=jobs, cluster=cluster, command=command_line.get())
    _tell(summary, "planned" if dry_run else str(out), as_json)
    if summary.failed:
        raise typer.Exit(FAILED)


def _tell(summary: Summary, head: str, as_json: bool) -> None:
    facts = {**summary.to_json(), "kept": summary.kept, "seconds": {k: round(v, 3) for k, v in summary.seconds.items()}}
    title = f"{head}: {summary.forgeries} forged scans of {summary.scans} pristine ones"
    show(facts, "\n".join([title, *words(summary)]), as_json)


def _refuse_wrong_use(index: Path | None, out: Path | None, sites: Path | None, dry_run: bool) -> None:
    if index is None and not (dry_run and sites is not None):
        raise typer.BadParameter("give an index; only --dry-run with --sites needs none", param_hint="INDEX")
    if out is None and not dry_run:
        raise typer.BadParameter("give a folder, or --dry-run", param_hint="OUT")


def words(summary: Summary) -> list[str]:
    """Counts, what was left out and why, and what failed."""
    lines = [table(summary.rows())]
    reasons = sorted(summary.reasons().items(), key=lambda item: -item[1])
    lines += [f"left out {count}: {reason}" for reason, count in reasons[:_REASONS]]
    return [*lines, *(f"failed {scan}: {error}" for scan, error in summary.failed)]
