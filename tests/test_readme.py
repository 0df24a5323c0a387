"""What the README says of the code is so."""

import re
from pathlib import Path

from tts.strategies import STRATEGIES

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_table_of_strategies_is_the_registry():
    section = README.split("\n## Strategies\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", section, re.MULTILINE)
    assert rows == [(s.name, s.summary, s.source) for _, s in sorted(STRATEGIES.items())]


def test_the_strategy_that_the_readme_shows_is_the_one_that_runs():
    shown = README.split("This is best-of-N, whole:")[1].split("```python\n")[1].split("```")[0].splitlines()
    source = (Path(__file__).parent.parent / "tts/strategies/best_of_n.py").read_text(encoding="utf-8")
    annotated = source.replace("problem: SearchProblem", "problem").replace(") -> Moves:", "):")
    assert all(line in annotated.splitlines() for line in shown if line.strip())
