"""The command line of the whole searches: `python -m benchmarks search --peers vllm,llamacpp --out FILE.jsonl`, and its parts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.search.checkpoints import SHAPES

app = typer.Typer(add_completion=False)

PEERS = ("transformers", "vllm", "llamacpp")
ALL_PEERS = ",".join(PEERS)

Out = Annotated[Path, typer.Option(help="JSONL file; a row is appended as soon as it is known.")]
Model = Annotated[str, typer.Option(help=f"Shape of the random weights: {', '.join(SHAPES)}.")]
Work = Annotated[Path, typer.Option(help="Folder for the checkpoints (2 GB, with llama.cpp's 4 GB).")]
Threads = Annotated[int, typer.Option(min=1, help="Pinned to one core each, for every engine.")]
Repeats = Annotated[int, typer.Option(min=1, help="The engines take turns; tables and plots show medians.")]
Timeout = Annotated[float, typer.Option(help="Seconds after which an engine's process is given up.")]
Plot = Annotated[Path | None, typer.Option(help="PNG of the rows of this run.")]
Peers = Annotated[str, typer.Option(help="Comma-separated; a peer without an environment gives a row that says so.")]
Transformers = Annotated[Path | None, typer.Option(help="Python with transformers; by default the one that runs this.")]
Vllm = Annotated[Path | None, typer.Option(help="Python of the environment that `peers/vllm_cpu.sh FOLDER whole` made.")]
Llamacpp = Annotated[Path | None, typer.Option(help="Python of the environment that `peers/llamacpp.sh FOLDER` made.")]

MODEL, WORK, THREADS, REPEATS, TIMEOUT = "qwen2.5-0.5b", Path("build/checkpoints"), 2, 3, 1800.0


@app.callback(invoke_without_command=True)
def search(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="JSONL file; needed unless a command follows.")] = None,
    trace: Annotated[str, typer.Option(help="Comma-separated names of benchmarks/search/traces.py, or all.")] = "beam,beam+prm",
    peers: Peers = ALL_PEERS,
    transformers: Transformers = None,
    vllm: Vllm = None,
    llamacpp: Llamacpp = None,
    model: Model = MODEL,
    work: Work = WORK,
    threads: Threads = THREADS,
    repeats: Repeats = REPEATS,
    timeout: Timeout = TIMEOUT,
    plot: Plot = None,
    device: Annotated[str, typer.Option(help="cpu or cuda, for this package and transformers.")] = "cpu",
) -> None:
    """Follow traces of whole searches with this package and with the peers."""
    if context.invoked_subcommand:
        return
    if out is None:
        raise typer.BadParameter("give a file for the rows", param_hint="--out")
    from benchmarks.search import table
    from benchmarks.search.run import Setup, run
    from benchmarks.search.traces import all_traces, named

    try:
        traces = list(all_traces().values()) if trace == "all" else named(trace.split(","))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--trace") from error
    setup = Setup(out, model, work, threads, repeats, timeout, _pythons(peers, transformers, vllm, llamacpp), device)
    rows = run(setup, traces)
    table.show(rows)
    if plot:
        table.save(rows, plot)
    _exit(rows)


@app.command()
def curves(
    out: Out,
    peers: Peers = "",
    transformers: Transformers = None,
    vllm: Vllm = None,
    llamacpp: Llamacpp = None,
    model: Model = MODEL,
    work: Work = WORK,
    threads: Threads = THREADS,
    repeats: Repeats = REPEATS,
    timeout: Timeout = TIMEOUT,
    plot: Plot = None,
) -> None:
    """Time, tokens per second and peak memory against N, depth, prompt length and problems at once."""
    from benchmarks.search import curves, table
    from benchmarks.search.run import Setup, run

    setup = Setup(out, model, work, threads, repeats, timeout, _pythons(peers, transformers, vllm, llamacpp))
    rows = run(setup, curves.traces())
    table.show(rows)
    if plot:
        curves.save(rows, plot)
    _exit(rows)


@app.command()
def steps(
    out: Out,
    model: Model = MODEL,
    work: Work = WORK,
    threads: Threads = THREADS,
    repeats: Repeats = REPEATS,
    timeout: Timeout = TIMEOUT,
) -> None:
    """A decode step of the whole batch, problems at once and in turn, and the shipped model S on its natural set."""
    from benchmarks.search import steps
    from benchmarks.search.run import Setup

    rows = steps.run(Setup(out, model, work, threads, repeats, timeout, {}))
    steps.show(rows)
    _exit(rows)


@app.command()
def agree(
    out: Out,
    peers: Peers = ALL_PEERS,
    transformers: Transformers = None,
    vllm: Vllm = None,
    llamacpp: Llamacpp = None,
    model: Model = MODEL,
    work: Work = WORK,
    threads: Threads = THREADS,
    timeout: Timeout = TIMEOUT,
) -> None:
    """Draw greedily with every engine: where each first differs from transformers in float32, and the logit gap there."""
    from benchmarks.search import agree
    from benchmarks.search.run import Setup

    rows = agree.run(Setup(out, model, work, threads, 1, timeout, _pythons(peers, transformers, vllm, llamacpp)))
    agree.show(rows)
    _exit(rows)


@app.command()
def report(
    readme: Annotated[Path, typer.Argument(help="The file with the marks.")] = Path("README.md"),
    device: Annotated[str, typer.Option(help="Whose rows: benchmarks/results/search*-DEVICE.jsonl.")] = "cpu",
) -> None:
    """Write the README's tables and the pictures from the result files."""
    from benchmarks.search import report

    report.write(readme, device)


def _pythons(peers: str, transformers: Path | None, vllm: Path | None, llamacpp: Path | None) -> dict[str, Path | None]:
    known = dict(zip(PEERS, (transformers or Path(sys.executable), vllm, llamacpp)))
    asked = [name for name in peers.split(",") if name]
    unknown = set(asked) - set(known)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; there are {', '.join(PEERS)}", param_hint="--peers")
    return {name: known[name] for name in asked}


def _exit(rows: list[dict[str, Any]]) -> None:
    """Exit code 1 if this package has a row without a figure; what a peer lacks is in the table."""
    raise typer.Exit(1 if any("error" in row for row in rows if row["engine"] == "tts") else 0)
