"""Running strategies on a search in tests, and reading off what came out."""

from __future__ import annotations

from collections.abc import Callable

from tts.engine.sampling import Sampling
from tts.request import Outcome, Request
from tts.search import Search
from tts.strategies import Strategy, find
from tts.tasks.chain import natural


def requests(name: str, count: int = 6, seed: int = 3, **parameters: object) -> list[Request]:
    strategy = find(name)
    values = strategy.make_parameters(parameters)
    return [Request(problem, strategy, values, Sampling(), seed) for problem in natural(count, seed)]


def scripted(run: Callable) -> Request:
    """A request that runs a generator written in a test."""
    problem, parameters = natural(1, 5)[0], find("best_of_n").make_parameters({"n": 1})
    return Request(problem, Strategy("scripted", "", type(parameters), run, True), parameters, Sampling(), 0)


def outcomes(search: Search, made: list[Request]) -> list[Outcome]:
    """Outcomes in the order of the requests; an error inside one is raised."""
    by_request = {id(o.request): o for o in search.run(made)}
    found = [by_request[id(request)] for request in made]
    for outcome in found:
        if outcome.error is not None:
            raise outcome.error
    return found


def transcript(outcome: Outcome) -> list[tuple]:
    """All that a result rests on: every answer's tokens, ends, scores and log-probabilities, step by step."""
    return [
        [(node.tokens, node.end, tuple(node.scores.values()), node.logprobs) for node in leaf.path] for leaf in outcome.leaves
    ]


def answers(outcome: Outcome) -> list[tuple[int, ...]]:
    """The answers' tokens alone."""
    return [tuple(t for node in leaf.path for t in node.tokens) for leaf in outcome.leaves]


def is_empty(search: Search) -> bool:
    """Whether no page, node, row or queue entry is left anywhere; checks the pools on the way."""
    pools = [*(p.kv for p in search.policies.values()), *(v.kv for v in search.verifiers.values() if hasattr(v, "kv"))]
    for pool in pools:
        pool.check()
    busy = any(p.has_work for p in search.policies.values()) or any(v.has_work for v in search.verifiers.values())
    return not busy and all(pool.num_used_pages == 0 and pool.num_nodes == 0 for pool in pools)
