"""A trace on vLLM (`vllm_cpu.sh FOLDER whole`) with prefix caching, a `generate` call a step. JSON in, JSON out.

Siblings of one length are drawn from one prompt with `n`.

Verifier, where the trace has one: `reencode` reads every text from its start, as search-and-learn does; `cached` gives the
verifier an engine of its own whose prefix cache keeps what it has read, each step one prefill that draws a single token.
"""

import importlib.metadata
import json
import os
import sys
import time
from itertools import groupby
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from peak import peak_mb  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402

BLOCK = 128  # vLLM's default on CPUs


class CachedVerifier:
    def __init__(self, folder: str, separator: int, **settings):
        self.engine, self.separator, self.num_tokens = LLM(folder, **settings), separator, 0

    def score(self, texts: list[list[int]]) -> None:
        prompts = [{"prompt_token_ids": [*text, self.separator]} for text in texts]
        outputs = self.engine.generate(prompts, SamplingParams(max_tokens=1, temperature=0), use_tqdm=False)
        self.num_tokens += sum(len(o.prompt_token_ids) - (o.num_cached_tokens or 0) for o in outputs)


def step(engine, beams: list[list[int]], parents: list[int], lengths: list[int]) -> list[list[int]]:
    """The beams of the next step: children of one parent and one length share a request."""
    runs = [(p, length, len(list(group))) for (p, length), group in groupby(zip(parents, lengths))]
    prompts = [{"prompt_token_ids": beams[p]} for p, _, _ in runs]
    fixed = {"ignore_eos": True, "detokenize": False, "temperature": 1.0}
    outputs = engine.generate(prompts, [SamplingParams(n=n, max_tokens=t, **fixed) for _, t, n in runs], use_tqdm=False)
    return [[*beams[p], *done.token_ids] for (p, _, _), o in zip(runs, outputs) for done in o.outputs]


def run(engine, verifier, trace: dict) -> float:
    begin = time.perf_counter()
    problems = len(trace["prompts"])
    n = len(trace["steps"][0][0]["parents"])
    beams = [prompt for prompt in trace["prompts"] for _ in range(n)]
    for depth in range(len(trace["steps"][0])):
        steps = [steps[depth] for steps in trace["steps"]]
        parents = [problem * n + parent for problem in range(problems) for parent in steps[problem]["parents"]]
        beams = step(engine, beams, parents, [length for s in steps for length in s["lengths"]])
        if verifier is not None:
            verifier.score(beams)
    return time.perf_counter() - begin


def cache_bytes(trace: dict, config: dict) -> int:
    """KV that is never evicted: every beam of every step has blocks of its own, its prefix's last one copied. By default vLLM
    takes 92 % of the machine's memory, which two engines cannot both have."""
    beams = [length for steps in trace["steps"] for step in steps for length in step["lengths"]]
    tokens = sum(map(len, trace["prompts"])) + sum(beams) + 2 * BLOCK * len(beams)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    token_bytes = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim
    return max(2 * tokens * token_bytes, 1 << 28)


def main() -> None:
    question = json.loads(sys.stdin.readline())
    trace = question["trace"]
    settings = {
        "dtype": "bfloat16",
        "skip_tokenizer_init": True,
        "enable_prefix_caching": True,
        "max_model_len": question["max_length"],
        "max_num_seqs": 256,
        "kv_cache_memory_bytes": cache_bytes(trace, json.loads((Path(question["policy"]) / "config.json").read_text())),
        "seed": 0,
    }
    engine = LLM(question["policy"], **settings)
    if "greedy" in question:
        prompts = [{"prompt_token_ids": prompt} for prompt in trace["prompts"]]
        fixed = SamplingParams(temperature=0, max_tokens=question["greedy"], ignore_eos=True, detokenize=False)
        drawn = [list(o.outputs[0].token_ids) for o in engine.generate(prompts, fixed, use_tqdm=False)]
        print(json.dumps({"drawn": drawn}), flush=True)
        return
    verifier = None
    if trace["has_verifier"] and question["line"] == "cached":
        # A causal model of the same shape: its head reads one row a text, as a classification head would.
        verifier = CachedVerifier(question["policy"], question["separator"], **settings)
    elif trace["has_verifier"]:
        from reencode import Reencoder

        verifier = Reencoder(question["verifier"], question["separator"], 4)
    other = [[token ^ 1 for token in prompt] for prompt in trace["prompts"]]  # warm without filling the cache for the trace
    run(engine, verifier, trace | {"prompts": other, "steps": [steps[:1] for steps in trace["steps"]]})
    if verifier is not None:
        verifier.num_tokens = 0
    seconds = run(engine, verifier, trace)
    read = verifier.num_tokens if verifier else 0
    versions = {name: importlib.metadata.version(name) for name in ("vllm-cpu", "torch")}
    answer = {"total_s": seconds, "verifier_tokens": read, "peak_mb": peak_mb(), "versions": versions}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
