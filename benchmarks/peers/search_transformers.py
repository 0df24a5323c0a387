"""A trace on transformers, in one of two ways. JSON in, JSON out. A verifier encodes every text again.

`cache`: `DynamicCache`, one batch of all beams, reordered between steps. The prompt is read once a problem and its cache repeated
for the beams. Beams of different lengths stay in the batch until the longest has its tokens; their idle positions are masked.

`continuous`: continuous batching with prefix sharing, a request a beam and step.
"""

import json
import sys
import time
from functools import partial
from itertools import chain

import torch
import transformers
from loading import load
from peak import peak_mb
from reencode import Reencoder
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, DynamicCache, GenerationConfig

PAGE_SIZE = 32


class Beams:
    """All beams of all problems, problem by problem."""

    def __init__(self, model, prompts: list[list[int]], n: int):
        self.model, self.n = model, n
        self.texts = [list(prompt) for prompt in prompts for _ in range(n)]
        self.cache = DynamicCache(config=model.config)
        out = model(input_ids=torch.tensor(prompts, device=model.device), past_key_values=self.cache, logits_to_keep=1)
        self.cache.batch_repeat_interleave(n)
        self.logits = out.logits[:, -1].repeat_interleave(n, 0)
        self.mask = torch.ones(len(self.texts), len(prompts[0]), dtype=torch.long, device=model.device)

    def step(self, parents: list[int], lengths: list[int]) -> None:
        at = torch.tensor(parents, device=self.model.device)
        self.cache.reorder_cache(at)
        self.logits, self.mask = self.logits[at], self.mask[at]
        self.texts = [list(self.texts[i]) for i in parents]
        left = torch.tensor(lengths, device=self.model.device)
        while left.max() > 0:
            drawn = torch.multinomial(torch.softmax(self.logits.float(), -1), 1)
            lives = left > 0
            for text, token, is_live in zip(self.texts, drawn[:, 0].tolist(), lives.tolist()):
                if is_live:
                    text.append(token)
            positions = self.mask.sum(-1, keepdim=True)
            self.mask = torch.cat([self.mask, lives[:, None].long()], -1)
            out = self.model(
                input_ids=drawn, past_key_values=self.cache, attention_mask=self.mask, position_ids=positions, logits_to_keep=1
            )
            self.logits = torch.where(lives[:, None], out.logits[:, -1], self.logits)
            left -= 1


class ContinuousBeams:
    """The same beams as requests; a prompt is read before its children ask for it, so that they find its pages."""

    def __init__(self, manager, prompts: list[list[int]], n: int):
        self.manager = manager
        self.texts = [list(prompt) for prompt in prompts for _ in range(n)]
        self._draw(prompts, [1] * len(prompts))

    def step(self, parents: list[int], lengths: list[int]) -> None:
        texts = [self.texts[parent] for parent in parents]
        self.texts = [[*text, *tokens] for text, tokens in zip(texts, self._draw(texts, lengths))]

    def _draw(self, texts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        ids = [self.manager.add_request(text, max_new_tokens=length, eos_token_id=-1) for text, length in zip(texts, lengths)]
        drawn: dict[str, list[int]] = {}
        while len(drawn) < len(ids):
            result = self.manager.get_result(timeout=5)
            if result is None:
                if not self.manager.is_running():
                    raise RuntimeError("continuous batching has stopped")
            elif result.error:
                raise RuntimeError(result.error)
            else:
                drawn[result.request_id] = result.generated_tokens
        return [drawn[i] for i in ids]


def start_continuous(model, trace: dict):
    """A manager with pages for all texts as if nothing but whole steps were shared."""
    texts = len(trace["prompts"]) * len(trace["prompts"][0]) + trace["num_tokens"]
    beams = sum(len(step["parents"]) for steps in trace["steps"] for step in steps)
    settings = ContinuousBatchingConfig(page_size=PAGE_SIZE, num_blocks=2 * texts // PAGE_SIZE + 2 * beams, max_batch_tokens=2048)
    sampling = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, eos_token_id=-1, pad_token_id=0)
    manager = model.init_continuous_batching(generation_config=sampling, continuous_batching_config=settings)
    manager.start()
    return manager


@torch.inference_mode()
def run(make_beams, verifier, trace: dict, num_steps: int) -> float:
    begin = time.perf_counter()
    n = len(trace["steps"][0][0]["parents"])
    beams = make_beams(trace["prompts"], n)
    for depth in range(num_steps):
        steps = [steps[depth] for steps in trace["steps"]]
        parents = [problem * n + parent for problem, step in enumerate(steps) for parent in step["parents"]]
        beams.step(parents, list(chain.from_iterable(step["lengths"] for step in steps)))
        if verifier is not None:
            verifier.score(beams.texts)
    return time.perf_counter() - begin


@torch.inference_mode()
def greedy(model, prompts: list[list[int]], count: int) -> list[list[int]]:
    """`count` tokens behind each prompt; the prompts have one length."""
    tokens = torch.tensor(prompts, device=model.device)
    settings = {"do_sample": False, "max_new_tokens": count, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)[:, tokens.shape[1] :].tolist()


def warm_up(trace: dict) -> dict:
    """Two tokens of every beam on a short prompt."""
    first = [
        [{"parents": step["parents"], "lengths": [2] * len(step["lengths"])} for step in steps[:1]] for steps in trace["steps"]
    ]
    return {"prompts": [prompt[:32] for prompt in trace["prompts"]], "steps": first}


def main() -> None:
    question = json.loads(sys.stdin.readline())
    trace = question["trace"]
    torch.set_num_threads(question["threads"])
    device = question["device"]
    model = load(AutoModelForCausalLM, question["policy"], device)
    if "greedy" in question:
        print(json.dumps({"drawn": greedy(model, trace["prompts"], question["greedy"])}), flush=True)
        return
    verifier = None
    if trace["has_verifier"]:  # a GPU reads more texts at a time than a CPU's caches hold
        verifier = Reencoder(question["verifier"], question["separator"], 4 if device == "cpu" else 16, device)
    manager = start_continuous(model, trace) if question["line"] == "continuous" else None
    make_beams = partial(ContinuousBeams, manager) if manager else partial(Beams, model)
    run(make_beams, verifier, warm_up(trace), 1)
    if verifier is not None:
        verifier.num_tokens = 0
    seconds = run(make_beams, verifier, trace, len(trace["steps"][0]))
    if manager:
        manager.stop()
    read = verifier.num_tokens if verifier else 0
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    answer = {"total_s": seconds, "verifier_tokens": read, "peak_mb": peak_mb(device), "versions": versions}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
