"""Who may import whom, read from the source without running it; and what an import loads, in processes of their own."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def folder(package):
    (found,) = importlib.util.find_spec(package).submodule_search_locations
    return Path(found)


def modules(package):
    """{dotted name: file} of all modules of the package."""
    root = folder(package)
    return {".".join((package, *path.relative_to(root).with_suffix("").parts)): path for path in sorted(root.rglob("*.py"))}


def imports(source, name):
    """Every dotted name that the module `name` imports, anywhere in its source; `from a import b` is `a.b`.

    `name` ends with `__init__` for a package.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if called in ("import_module", "__import__"):
                found.add(node.args[0].value)
    return found


def lies_in(name, package):
    return name == package or name.startswith(f"{package}.")


def violations(importers, forbidden):
    """`importer -> imported` for all imports of something in `forbidden`."""
    return [
        f"{importer} -> {imported}"
        for importer, path in importers.items()
        for imported in sorted(imports(path.read_text(encoding="utf-8"), importer))
        if any(lies_in(imported, package) for package in forbidden)
    ]


EVERYTHING = modules("tts") | modules("tts_kernels")
FORBIDDEN_TO_STRATEGIES = [
    *("torch", "numpy", "transformers", "tts_kernels"),
    *("tts.engine", "tts.search", "tts.solver", "tts.verifiers", "tts.surfaces"),
]
RULES = {
    "the kernels know nothing of the search": ("tts_kernels", [], ["tts"]),
    "the kernels need no transformers": ("tts_kernels", [], ["transformers"]),
    "strategies know neither tensors nor who runs them": ("tts.strategies", [], FORBIDDEN_TO_STRATEGIES),
    "moves and nodes know neither": (("tts.moves", "tts.tree"), [], FORBIDDEN_TO_STRATEGIES),
    "only surfaces import surfaces": (("tts", "tts_kernels"), ["tts.surfaces"], ["tts.surfaces"]),
    "one module imports the C++ module": (("tts", "tts_kernels"), ["tts_kernels.native"], ["tts_kernels._native"]),
    "ops do not know their backends": (
        "tts_kernels",
        ["tts_kernels.__init__", "tts_kernels.native", "tts_kernels.triton"],
        ["tts_kernels.native", "tts_kernels._native", "tts_kernels.triton", "triton"],
    ),
    "engines and verifiers do not know who runs them": (("tts.engine", "tts.verifiers"), [], ["tts.search", "tts.solver"]),
    "the search does not know the solver": ("tts.search", [], ["tts.solver"]),
}


@pytest.mark.parametrize("rule", RULES)
def test_imports_point_one_way(rule):
    inside, exempt, forbidden = RULES[rule]
    inside = (inside,) if isinstance(inside, str) else inside
    importers = {
        name: path
        for name, path in EVERYTHING.items()
        if any(lies_in(name, package) for package in inside) and not any(lies_in(name, package) for package in exempt)
    }
    assert all(any(lies_in(name, package) for name in importers) for package in inside), "the rule looks at nothing"
    assert violations(importers, forbidden) == []


def test_the_exceptions_of_the_rules_are_real():
    """What a rule exempts does import what the rule forbids the others: a renamed module cannot hollow a rule out."""
    for importer, imported in [
        ("tts_kernels.native", "tts_kernels._native"),
        ("tts_kernels.__init__", "tts_kernels.native"),
        ("tts.surfaces.cli", "tts.surfaces"),
        ("tts.solver", "tts.search"),
        ("tts.search", "tts.engine"),
        ("tts.search", "tts.verifiers"),
        ("tts.engine.policy", "tts_kernels"),
    ]:
        assert violations({importer: EVERYTHING[importer]}, [imported])


@pytest.mark.parametrize(
    "source",
    [
        "import tts.search",
        "import os, tts.search as s",
        "from tts import search",
        "from tts.search import Search",
        "from ..search import Search",
        "from .. import search",
        "def f():\n    from tts.search import Search",
        "if TYPE_CHECKING:\n    import tts.search",
        "import importlib\nimportlib.import_module('tts.search')",
        "__import__('tts.search')",
    ],
)
def test_every_way_to_import_is_seen(tmp_path, source):
    (tmp_path / "m.py").write_text(source)
    assert violations({"tts.engine.m": tmp_path / "m.py"}, ["tts.search"])
    assert not violations({"tts.engine.m": tmp_path / "m.py"}, ["tts.sea", "tts.search.deeper.still", "tts.engine"])


def test_a_relative_import_of_a_package_is_of_the_package_itself(tmp_path):
    (tmp_path / "__init__.py").write_text("from .native import x\nfrom . import prune")
    found = violations({"tts_kernels.__init__": tmp_path / "__init__.py"}, ["tts_kernels"])
    assert found == ["tts_kernels.__init__ -> tts_kernels.native.x", "tts_kernels.__init__ -> tts_kernels.prune"]


# ---- what an import loads


def run(code):
    """The last line that a fresh interpreter prints for `code`, as JSON."""
    roots = dict.fromkeys(str(folder(package).parent) for package in ("tts", "tts_kernels"))
    path = os.pathsep.join([*roots, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def loaded(statement, *names):
    """Which of the modules are loaded after the statement, in a fresh interpreter."""
    return run(f"import json, sys\n{statement}\nprint(json.dumps([n for n in {names!r} if n in sys.modules]))")


def test_importing_tts_loads_neither_torch_nor_transformers():
    assert loaded("import tts", "tts", "torch", "transformers") == ["tts"]


def test_importing_the_strategies_loads_no_tensor_library():
    heavy = "torch", "transformers", "numpy", "tts_kernels", "tts.engine", "tts.search"
    assert loaded("import tts.strategies, tts.moves, tts.record", *heavy) == []


def test_importing_the_kernels_loads_torch_but_not_transformers():
    assert loaded("import tts_kernels, tts_kernels.pages", "torch", "transformers", "tts") == ["torch"]


def test_without_the_cpp_module_everything_runs_on_the_reference_and_says_why():
    result = run(
        """
        import json, sys
        sys.modules["tts_kernels._native"] = None  # its import now raises ImportError

        import torch
        import tts_kernels
        from tts_kernels.pages import PagedKV

        kv = PagedKV(8, 4, num_layers=1, num_kv_heads=1, head_dim=2)
        (root,) = kv.add([-1])
        values = torch.arange(16.0).reshape(8, 1, 2)
        tts_kernels.append(values[:6], values[:6], *kv.layers[0], torch.from_numpy(kv.extend([root], [6])))
        children = kv.add([root] * 2)
        tts_kernels.append(values[6:], values[6:], *kv.layers[0], torch.from_numpy(kv.extend(children, [1, 1])))
        plan = kv.plan(children, [0, 1, 2])
        queries = torch.zeros(2, 1, 2)
        out, lse = tts_kernels.attend(queries, *kv.layers[0], plan.spans, plan.item_indptr, plan.items, 1.0)
        i32 = lambda *x: torch.tensor(x, dtype=torch.int32)
        pruned = tts_kernels.prune(torch.tensor([0.1, 0.9, 0.5]), i32(0, 3), i32(4), i32(2), None, "top", 1.0, 4)
        try:
            tts_kernels.prune(torch.tensor([0.1]), i32(0, 1), i32(1), i32(1), None, "top", 1.0, 1, backend="native")
            refused = ""
        except ValueError as error:
            refused = str(error)
        print(json.dumps({
            "widths": pruned.widths.tolist(),
            "attended": out[:, 0, 0].tolist(),
            "ops": list(tts_kernels.OPS),
            "backends": tts_kernels.backends(),
            "refused": refused,
        }))
        """
    )
    assert result["widths"] == [0, 2, 2]
    assert result["attended"] == pytest.approx([(30 + 12) / 7, (30 + 14) / 7])  # a zero query takes the mean of its path
    states = {(row["op"], row["backend"]): row["state"] for row in result["backends"]}
    assert len(result["ops"]) >= 8
    for op in result["ops"]:
        assert states[op, "reference"] == "used"
        assert "C++ module could not be imported" in states[op, "native"] and "_native" in states[op, "native"]
    assert "native" in result["refused"] and "could not be imported" in result["refused"]
