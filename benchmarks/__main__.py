"""The command line of the measurements: `python -m benchmarks kernels --quick --out FILE.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.search.commands import app as search

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_show_locals=False)


app.add_typer(search, name="search")


@app.callback()
def commands() -> None:
    """Measurements of the kernels against the machine's ceilings, and of whole searches against other engines."""


@app.command()
def kernels(
    out: Annotated[Path, typer.Option(help="JSONL file; one row is appended for each case.")],
    device: Annotated[
        str, typer.Option(help="cpu, or cuda: the families that have GPU kernels, timed by events on the device.")
    ] = "cpu",
    families: Annotated[str | None, typer.Option(help="Comma-separated; all by default.")] = None,
    only: Annotated[str | None, typer.Option(help="Only cases whose name contains this.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few cases of each family, a minute in all.")] = False,
    dtype: Annotated[str, typer.Option(help="bf16 or f32; for the ops that take either.")] = "bf16",
    threads: Annotated[int, typer.Option(min=1, help="Pinned to one core each.")] = 2,
    seconds: Annotated[float | None, typer.Option(help="Time to measure each case; 2, or .5 with --quick.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of achieved / floor for the rows of this run.")] = None,
    vllm: Annotated[Path | None, typer.Option(help="Python of the environment that peers/vllm_cpu.sh made.")] = None,
) -> None:
    """Check every case against plain PyTorch, then time it beside its peers. Exit code 1 if a result is wrong or a case fails."""
    from benchmarks.kernels.pinning import pin_threads

    pin_threads(threads)

    from benchmarks.kernels import run, table

    if device not in ("cpu", "cuda") or dtype not in run.DTYPES:
        raise typer.BadParameter(f"there are --device cpu|cuda, --dtype {'|'.join(run.DTYPES)}; got {device}, {dtype}")
    try:
        setting = run.make_setting(dtype, device, vllm, quick)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    chosen = families.split(",") if families else None
    rows = run.run(out, chosen, only or "", quick, setting, seconds or (0.5 if quick else 2.0))
    table.show(rows)
    if plot:
        from benchmarks.kernels.plot import save

        save(rows, plot)
    raise typer.Exit(0 if all(row["is_correct"] for row in rows) else 1)


@app.command()
def verifier(
    out: Annotated[Path, typer.Option(help="JSONL file; one row is appended for each model.")],
    quick: Annotated[bool, typer.Option("--quick", help="The tiny model only.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Pinned to one core each.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each variant, in turn.")] = 3,
) -> None:
    """Score beams step by step, incrementally and by encoding every text again. Exit code 1 if scores differ."""
    from benchmarks.kernels.pinning import pin_threads

    pin_threads(threads)

    from benchmarks import verifier as measured

    rows = measured.run(out, repeats, quick)
    measured.show(rows)
    raise typer.Exit(0 if all(row["is_correct"] for row in rows) else 1)


@app.command()
def aot(
    out: Annotated[Path, typer.Option(help="JSON file: a list with a row for each compiled kernel.")],
    quick: Annotated[bool, typer.Option("--quick", help="A few configurations for two of the targets, a minute in all.")] = False,
) -> None:
    """Compile the Triton kernels for sm_80, sm_90, sm_100, gfx942, without a GPU. Exit code 1 if one spills or does not fit."""
    from benchmarks import aot

    rows = aot.run(out, quick)
    print(aot.summary(rows))
    raise typer.Exit(0 if rows and all(row.fits for row in rows) else 1)


@app.command()
def show(
    results: Annotated[Path, typer.Argument(help="JSONL file that `kernels` or `search` wrote.")],
    plot: Annotated[Path | None, typer.Option(help="PNG of the same picture as with the measurement.")] = None,
) -> None:
    """The table, and the plot, of rows that were measured before."""
    import json

    rows = [json.loads(line) for line in results.read_text().splitlines()]
    if "trace" in rows[0]:
        from benchmarks.search.table import save, show
    else:
        from benchmarks.kernels.plot import save
        from benchmarks.kernels.table import show
    show(rows)
    if plot:
        save(rows, plot)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
