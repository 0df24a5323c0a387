"""The kernels' benchmark: cases put all of their data on the device they are asked for, peers compute what the op does."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

pytest.importorskip("tts_kernels.native")
sys.path.append(str(Path(__file__).parents[1]))  # behind what is installed: benchmarks are not

from benchmarks.kernels import flashinfer, flex, gpu, plot, run, sdpa, table
from benchmarks.kernels.attend import Judge
from benchmarks.kernels.cases import FAMILIES, Case, PeerError, Setting, Spec, Variant, random
from benchmarks.kernels.floors import Work
from benchmarks.kernels.timing import on_the_host, times
from benchmarks.kernels.trees import Heads, Level, Tree, grow
from benchmarks.peers.loading import load
from benchmarks.search.checkpoints import make
from tts.engine.weights import Weights

SETTING = Setting(dtype="f32", cold_bytes=1)
HEADS = Heads("4/2x16", 4, 2, 16, 3)
TREE = Tree("three levels", (Level(1, 37), Level(2, 5), Level(2, 3), Level(6, 4)))
CHUNKS = Tree("chunks of 3 tokens", (Level(1, 20), Level(2, 3)), new=3)
SMALL = {
    "tails of 4 tokens",
    "decode 64 rows",
    "64 steps x 896",
    "64x16 top",
    "64x16 softmax",
    "64 children, node table",
    "2048+1x64",
}


def made() -> Case:
    """A case of nothing."""
    return Case("f32", Work(1.0), "nothing", lambda: (0.0, 0.0), Variant(lambda: None), "none")


@pytest.mark.parametrize("tree", [TREE, CHUNKS], ids=lambda tree: tree.name)
def test_attention_peers_agree_with_plain_attention_on_a_tree(tree):
    grown, q = grow(tree, HEADS, 1, torch.float32), random((tree.queries, 4, 16), torch.float32)
    judge = Judge(tree, q, grown, 16**-0.5)
    for peer in (flex.attend, sdpa.per_branch, sdpa.merged):
        judge.agreeing(peer(tree, HEADS, q, grown, SETTING))  # an error if it is wrong
    with pytest.raises(PeerError, match="too long for --quick"):
        flex.attend(tree, HEADS, q, grown, replace(SETTING, is_quick=True))


@pytest.mark.parametrize("page_size", [1, 16])
def test_the_page_tables_for_flashinfer_hold_every_row_s_context(page_size):
    grown = grow(TREE, HEADS, 1, torch.float32)
    pages, tables = flashinfer.paged(TREE, grown, page_size)
    assert [len(table[0]) - 1 for table in tables] == [1, 2, 6]  # the chain in the middle is one level
    for row in range(TREE.rows):
        found = []
        for _, offsets, indices, last in tables:
            node = row * (len(offsets) - 1) // TREE.rows
            own = pages[indices[offsets[node] : offsets[node + 1]].long()].transpose(1, 2).flatten(0, 1)
            found.append(own[: len(own) - page_size + int(last[node])])
        expected = torch.stack(grown.gather(TREE, row)).permute(2, 0, 1, 3)
        torch.testing.assert_close(torch.cat(found), expected)
    if page_size == 1:
        offsets, indices, last = flashinfer.branch_tables(TREE, tables)
        assert offsets.diff().tolist() == [TREE.context] * TREE.rows and last.tolist() == [1] * TREE.rows
        torch.testing.assert_close(
            pages[indices[offsets[4] : offsets[5]].long()][:, :, 0], torch.stack(grown.gather(TREE, 4)).permute(2, 0, 1, 3)
        )


def test_a_peer_that_is_not_installed_is_named_with_the_reason():
    case = made()
    case.add_peer("absent", lambda: flashinfer.imported("no_such_module_here"))
    case.add_peer("broken", lambda: {}["key"])
    assert case.missing == {"absent": case.missing["absent"], "broken": "KeyError: 'key'"}
    assert "no_such_module_here" in case.missing["absent"]


def test_cases_make_nothing_on_another_device_than_the_one_they_are_asked_for():
    """Whatever is made without a device comes out on `meta`, where it has no values: the op would refuse it."""
    specs = [spec for make in FAMILIES.values() for spec in make() if "cuda" in spec.devices]
    assert {spec.op for spec in specs} == {"append", "attend", "copy_tails", "fork", "prune", "sample", "score"}
    specs = [spec for spec in specs if any(name in spec.name for name in SMALL) and "32/8" not in spec.name]
    for spec in specs:
        torch.set_default_device("meta")
        try:
            case = spec.make(Setting(dtype="f32", cold_bytes=1 << 20))
            case.ours.run()
        finally:
            torch.set_default_device(None)
        max_error, allowed = case.check()
        assert max_error <= allowed, spec.name
    assert len(specs) >= 5


def test_a_machine_without_a_gpu_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="torch sees no GPU"):
        run.make_setting("bf16", "cuda", None)


def test_variants_are_sampled_in_turn_by_whatever_clock_prepares_them():
    def prepare(variant):
        if variant.timer:
            raise PeerError("it times itself")
        return lambda: (variant.run(), False)

    variants = {"ours": Variant(lambda: 2e-6), "peer": Variant(lambda: 3e-6), "other": Variant(print, timer=print)}
    missing = {}
    found = times(variants, missing, 0.0, prepare)
    assert {name: round(t.at(0.5), 6) for name, t in found.items()} == {"ours": 2.0, "peer": 3.0}
    assert missing == {"other": "it times itself"}
    assert on_the_host(variants["ours"])()[0] > 0


def test_a_peer_that_fails_at_any_time_is_missing_and_ours_is_an_error():
    def prepare(variant):
        return variant.timer or variant.run()

    def fails():
        raise OSError("no more\nof it")

    late = iter([(1e-6, False), (1e-6, False)])
    peers = {"early": Variant(fails), "late": Variant(print, timer=lambda: next(late))}
    missing = {}
    found = times({"ours": Variant(print, timer=lambda: (2e-6, False)), **peers}, missing, 0.0, prepare)
    assert list(found) == ["ours"] and missing == {"early": "OSError: no more", "late": "StopIteration: "}
    with pytest.raises(OSError, match="no more"):
        times({"ours": Variant(fails)}, {}, 0.0, prepare)


def test_a_case_that_fails_is_a_row_with_the_reason_and_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    def fails(setting):
        raise RuntimeError("tensors on [cuda] and [/cpu]\n and more")

    specs = [Spec("fails", "at once", True, fails), Spec("works", "behind it", True, lambda setting: made())]
    monkeypatch.setitem(FAMILIES, "both", lambda: iter(specs))
    monkeypatch.setattr(run.native, "ceilings", lambda seconds, names: dict.fromkeys(names, 1e9))
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    rows = run.run(tmp_path / "rows.jsonl", ["both"], "", True, SETTING, 0.0)
    assert [row["is_correct"] for row in rows] == [False, True]  # the exit code is that of a wrong result
    assert rows[0]["error"] == "RuntimeError: tensors on [cuda] and [/cpu]" and rows[0]["commit"]
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
    table.show(rows)
    assert "tensors on [cuda] and [/cpu]" in capsys.readouterr().out
    plot.save(rows, tmp_path / "rows.png")


def test_a_shape_without_weights_is_loaded_with_random_ones_and_its_head_read(tmp_path):
    for folder, kind, width in zip(make("zoo-s", tmp_path, has_weights=False), (AutoModelForCausalLM, AutoModel), (27, 48)):
        model = load(kind, str(folder), "cpu")
        out = model(torch.arange(4)[None])[0]
        assert out.dtype == torch.bfloat16 and out.shape == (1, 4, width) and out.isfinite().all() and out.std() > 0
    assert Weights(str(folder)).tensor("score.weight").shape == (2, 48)


def test_a_call_that_waits_for_the_device_is_never_captured(monkeypatch):
    modes, captured = [], []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(gpu, "_captured", lambda call, calls: captured.append(calls) or call)
    monkeypatch.setattr(gpu, "_elapsed", lambda run: 1e-5)

    def waits():
        if modes[-1:] == ["error"]:
            raise RuntimeError("called a synchronizing CUDA operation")

    assert gpu._repeated(waits, 4)[1:] == (4, False) and gpu._repeated(waits, None)[1:] == (20, False)
    assert captured == [] and modes == ["error", "default"] * 2
    assert gpu._repeated(lambda: None, 4)[1:] == (4, True) and gpu._repeated(lambda: None, None)[1:] == (20, True)
    assert captured == [4, 1, 20] and modes == ["error", "default"] * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_s_clock_and_ceilings():
    clock = gpu.Clock(1 << 20)
    x = torch.ones(1 << 20, device="cuda")
    planned, waiting, short = Variant(lambda: x.mul_(1.0), lambda: None, 4), Variant(lambda: x.sum().item()), Variant(x.sin_)
    assert all(clock.prepare(variant)()[0] > 0 for variant in (planned, waiting, short))
    assert clock.is_graph == {planned: True, waiting: False, short: True}
    found = gpu.ceilings(0.05, ("dram_read", "dram_copy", "cache_read", "bf16_tiles", "f32_fma", "bf16_dot"))
    assert found.pop("bf16_dot") == 0 and min(found.values()) > 1e9
