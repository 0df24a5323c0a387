"""The README's part on whole searches, written from result files: tables in Markdown, pictures beside the files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.search import curves, steps, table
from benchmarks.search.run import OURS, medians

BEGIN, END = "<!-- python -m benchmarks search report: begin -->", "<!-- end -->"
RESULTS = Path(__file__).parents[1] / "results"
Rows = list[dict[str, Any]]


def write(readme: Path, device: str) -> None:
    """Replace what stands between the marks in `readme`. A part without its file in `benchmarks/results` is left out."""
    parts = {"search": _searches, "search-steps": _steps, "search-agree": _agreement, "search-curves": _curves}
    texts = []
    for name, part in parts.items():
        path = RESULTS / f"{name}-{device}.jsonl"
        if path.exists():
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            texts.append("\n".join(part(rows, path)))
    text = readme.read_text(encoding="utf-8")
    if not texts or text.count(BEGIN) != 1 or END not in text.split(BEGIN)[1]:
        raise ValueError(f"needs results in {RESULTS} and one pair of marks in {readme}: {BEGIN!r}, {END!r}")
    before, rest = text.split(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n" + "\n\n".join(texts) + f"\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def _searches(rows: Rows, path: Path) -> Iterator[str]:
    """A table for each model and each of policy only, with a PRM; a peer that was faster is in bold."""
    yield "Seconds for the whole search; for the peers also how many times as long they take, **bold** where they are faster."
    for model in dict.fromkeys(row["model"] for row in rows):
        for has_verifier in (False, True):
            some = [row for row in rows if row["model"] == model and row["has_verifier"] == has_verifier]
            if some:
                what = "with a PRM of the same shape at every step" if has_verifier else "policy only"
                yield f"\n{model}, {what}:\n"
                yield from _table(some)
        some = [row for row in rows if row["model"] == model]
        table.save(some, path.with_name(f"{path.stem}-{model}.png"))
    yield from _source(rows, path)


def _table(rows: Rows) -> Iterator[str]:
    found = medians(rows)
    engines = [name for name in dict.fromkeys(row["engine"] for row in rows) if name != OURS.name]
    has_verifier = rows[0]["has_verifier"]
    heads = ["trace", "ours", "tokens/s", *(["verifier tokens"] if has_verifier else []), *engines, "peak MB of each"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for trace, by_engine in found.items():
        ours = by_engine.get(OURS.name, {})
        cells = [f"`{trace}`", _seconds(ours), f"{ours['tokens_per_s']:,.0f}" if "total_s" in ours else ""]
        if has_verifier:
            cells.append(f"{ours.get('verifier_tokens', 0):,}")
        cells += [_against(by_engine.get(engine), ours) for engine in engines]
        peaks = (by_engine.get(engine, {}).get("peak_mb") for engine in (OURS.name, *engines))
        cells.append(" / ".join("-" if peak is None else f"{peak:,.0f}" for peak in peaks))
        yield f"| {' | '.join(cells)} |"
    for engine, reason in dict.fromkeys((row["engine"], row["error"]) for row in rows if "error" in row):
        yield f"\n{engine} without a figure: {reason}"


def _seconds(row: dict[str, Any]) -> str:
    return f"{row['total_s']:.3g}" if "total_s" in row else "none"


def _against(row: dict[str, Any] | None, ours: dict[str, Any]) -> str:
    if row is None:
        return ""
    if "total_s" not in row or "total_s" not in ours:
        return _seconds(row)
    ratio = row["total_s"] / ours["total_s"]
    text = f"{row['total_s']:.3g} = {ratio:.2f}x"
    return f"**{text}**" if ratio < 1 else text


def _steps(rows: Rows, path: Path) -> Iterator[str]:
    yield "| measured | ms a decode step | tokens/s | problems/s | ms beyond the forward passes, a step |\n|---|---|---|---|---|"
    for name, found in steps.figures(rows).items():
        cells = (found.get(field) for field in ("step_ms", "tokens_per_s", "problems_per_s", "beyond_ms"))
        yield f"| {name} | " + " | ".join("" if value is None else f"{value:,.4g}" for value in cells) + " |"
    yield from _source(rows, path)


def _agreement(rows: Rows, path: Path) -> Iterator[str]:
    yield "| model | greedy decoding by | first token that differs from float32, by prompt | logit gap there |\n|---|---|---|---|"
    for row in rows:
        places, gaps = row.get("first_difference", [row.get("error")]), row.get("logit_gap", [])
        yield f"| {row['model']} | {row['engine']} | {_listed(places, '{}')} | {_listed(gaps, '{:.4f}')} |"
    yield from _source(rows, path)


def _listed(values: list, form: str) -> str:
    return ", ".join("none" if value is None else form.format(value) for value in values)


def _curves(rows: Rows, path: Path) -> Iterator[str]:
    picture = path.with_suffix(".png")
    curves.save(rows, picture)
    yield f"![Time, tokens per second and peak memory against N, depth, prompt and problems](benchmarks/results/{picture.name})"
    yield from _source(rows, path)


def _source(rows: Rows, path: Path) -> Iterator[str]:
    """Where the rows come from."""

    def all_of(field: str) -> str:
        return ", ".join(dict.fromkeys(str(row[field]) for row in rows))

    versions = {name: version for row in rows for name, version in row["versions"].items()}
    yield f"\n`benchmarks/results/{path.name}`, {all_of('model')}: {all_of('cpu')}, {all_of('threads')} threads, medians of up"
    yield f"to {1 + max(row.get('repeat', 0) for row in rows)} runs, commit {all_of('commit')}, {all_of('time')[:10]};"
    yield ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) + "."
