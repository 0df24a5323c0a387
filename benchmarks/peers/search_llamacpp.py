"""A trace on llama.cpp (`llamacpp.sh FOLDER`), weights in BF16. JSON in, JSON out.

A beam is a sequence of one unified KV cache: a fork is `seq_cp`, which copies no KV, a beam that is not gone on from is
removed by `seq_rm`, all beams are decoded in one batch. Tokens are drawn by the library's own sampler.

Verifier, where the trace has one: its head stands in the output layer and is read behind the separator of the last step only.
`reencode` reads every text from its start, as search-and-learn does; `cached` keeps a sequence a beam and reads what is new.
"""

import ctypes
import json
import math
import sys
import time
from itertools import groupby
from pathlib import Path

import llama_cpp
from peak import peak_mb
from to_gguf import convert

BATCH = 2048  # tokens given to one llama_decode


class Sequences:
    """Sequences in one context. A row of logits stays readable until the next `read`."""

    def __init__(self, folder: str, num_sequences: int, num_cells: int, threads: int):
        self.model = llama_cpp.llama_model_load_from_file(
            str(convert(Path(folder))).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_seq_max = num_cells, BATCH, num_sequences
        settings.n_outputs_max = num_sequences
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = True  # shares prefixes: one KV cell serves several sequences
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise RuntimeError(f"llama.cpp gives no context for {num_sequences} sequences and {num_cells} cells")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.lengths = [0] * num_sequences

    def fork(self, source: int, target: int) -> None:
        llama_cpp.llama_memory_seq_cp(self.memory, source, target, -1, -1)
        self.lengths[target] = self.lengths[source]

    def cut(self, sequence: int, length: int = 0) -> None:
        """Forget what the sequence has behind its first `length` tokens."""
        llama_cpp.llama_memory_seq_rm(self.memory, sequence, length, -1)
        self.lengths[sequence] = length

    def read(self, sequences: list[int], texts: list[list[int]], take) -> list:
        """Append tokens to sequences; `take(row)` for each, where `row` names the logits behind its last token."""
        entries = [(s, i == len(text) - 1, token) for s, text in zip(sequences, texts) for i, token in enumerate(text)]
        taken = []
        for begin in range(0, len(entries), BATCH):
            some = entries[begin : begin + BATCH]
            for row, entry in enumerate(some):
                self.put(row, *entry)
            self.batch.n_tokens = len(some)
            code = llama_cpp.llama_decode(self.context, self.batch)
            if code:
                raise RuntimeError(f"llama_decode gave {code} for {len(some)} tokens")
            taken += [take(row) for row, (_, is_last, _) in enumerate(some) if is_last]
        return taken

    def put(self, row: int, sequence: int, is_last: bool, token: int) -> None:
        self.batch.token[row], self.batch.pos[row] = token, self.lengths[sequence]
        self.batch.n_seq_id[row], self.batch.seq_id[row][0] = 1, sequence
        self.batch.logits[row] = is_last
        self.lengths[sequence] += 1


class Beams:
    """All beams of all problems, problem by problem: beam i is `texts[i]`, its KV that of sequence `ids[i]`."""

    def __init__(self, sequences: Sequences, prompts: list[list[int]], n: int):
        self.sequences = sequences
        self.texts = [list(prompt) for prompt in prompts for _ in range(n)]
        self.ids = list(range(len(self.texts)))
        for beam in self.ids:
            sequences.cut(beam)
        for first in range(0, len(self.texts), n):
            # All but the last token: that one is read when a step needs its logits.
            sequences.read([first], [self.texts[first][:-1]], lambda row: None)
            for beam in range(first + 1, first + n):
                sequences.fork(first, beam)

    def fork(self, parents: list[int]) -> None:
        """Beam i goes on from `parents[i]`: the first child takes its parent's sequence over, others those that are free."""
        kept = set(parents)
        free = [self.ids[beam] for beam in range(len(self.ids)) if beam not in kept]
        for sequence in free:
            self.sequences.cut(sequence)
        ids, is_taken = [], set()
        for parent in parents:
            if parent in is_taken:
                ids.append(free.pop())
                self.sequences.fork(self.ids[parent], ids[-1])
            else:
                ids.append(self.ids[parent])
                is_taken.add(parent)
        self.ids, self.texts = ids, [list(self.texts[parent]) for parent in parents]

    def step(self, parents: list[int], lengths: list[int], sampler) -> None:
        """Children of one parent are drawn from one row of logits; then every beam that has tokens left goes on."""
        widths = [(parent, len(list(group))) for parent, group in groupby(parents)]
        widest = iter([width for _, width in widths])
        read = self.sequences.read
        first = read(
            [self.ids[p] for p, _ in widths],
            [self.texts[p][-1:] for p, _ in widths],
            lambda row: [self.draw(sampler, row) for _ in range(next(widest))],
        )
        self.fork(parents)
        for text, token in zip(self.texts, (token for tokens in first for token in tokens)):
            text.append(token)
        for drawn in range(1, max(lengths)):
            live = [beam for beam, length in enumerate(lengths) if length > drawn]
            last = [self.texts[beam][-1:] for beam in live]
            tokens = read([self.ids[beam] for beam in live], last, lambda row: self.draw(sampler, row))
            for beam, token in zip(live, tokens):
                self.texts[beam].append(token)

    def draw(self, sampler, row: int) -> int:
        return llama_cpp.llama_sampler_sample(sampler, self.sequences.context, row)


class Reencoder:
    def __init__(self, folder: str, separator: int, max_length: int, threads: int):
        self.sequences, self.separator, self.num_tokens = Sequences(folder, 1, max_length, threads), separator, 0

    def score(self, beams: Beams, parents: list[int]) -> list[float]:
        return [self.encode(text) for text in beams.texts]

    def encode(self, text: list[int]) -> float:
        self.sequences.cut(0)
        self.num_tokens += len(text) + 1
        (score,) = self.sequences.read([0], [[*text, self.separator]], lambda row: probability(self.sequences, row))
        return score


class CachedVerifier:
    """A sequence a beam; the separator is forgotten behind its score, as the next step's text goes on without it."""

    def __init__(self, folder: str, separator: int, num_sequences: int, num_cells: int, threads: int):
        self.sequences = Sequences(folder, num_sequences, num_cells, threads)
        self.separator, self.num_tokens, self.read = separator, 0, None

    def start(self, prompts: list[list[int]], n: int) -> None:
        self.read = Beams(self.sequences, prompts, n)
        self.num_tokens += sum(len(prompt) - 1 for prompt in prompts)

    def score(self, beams: Beams, parents: list[int]) -> list[float]:
        self.read.fork(parents)
        lengths = [self.sequences.lengths[sequence] for sequence in self.read.ids]
        new = [[*text[length:], self.separator] for text, length in zip(beams.texts, lengths)]
        self.num_tokens += sum(map(len, new))
        scores = self.sequences.read(self.read.ids, new, lambda row: probability(self.sequences, row))
        for sequence, text in zip(self.read.ids, beams.texts):
            self.sequences.cut(sequence, len(text))
        return scores


def probability(sequences: Sequences, row: int) -> float:
    """Of label 1, from the logits that stand in the places of tokens 0 and 1."""
    logits = llama_cpp.llama_get_logits_ith(sequences.context, row)
    return 1 / (1 + math.exp(logits[0] - logits[1]))


def run(sequences: Sequences, verifier, sampler, trace: dict, num_steps: int) -> tuple[float, list[float]]:
    """(seconds, scores of the last step)."""
    begin = time.perf_counter()
    n, scores = len(trace["steps"][0][0]["parents"]), []
    beams = Beams(sequences, trace["prompts"], n)
    if isinstance(verifier, CachedVerifier):
        verifier.start(trace["prompts"], n)
    for depth in range(num_steps):
        steps = [steps[depth] for steps in trace["steps"]]
        parents = [problem * n + parent for problem, step in enumerate(steps) for parent in step["parents"]]
        beams.step(parents, [length for step in steps for length in step["lengths"]], sampler)
        if verifier is not None:
            scores = verifier.score(beams, parents)
    return time.perf_counter() - begin, scores


def make_sampler(is_greedy: bool):
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    one = llama_cpp.llama_sampler_init_greedy() if is_greedy else llama_cpp.llama_sampler_init_dist(0)
    llama_cpp.llama_sampler_chain_add(chain, one)
    return chain


def num_cells(trace: dict) -> int:
    """KV cells that suffice if no beam shared more than its prompt, in whole blocks of 256."""
    drawn = sum(max(step["lengths"]) * len(step["lengths"]) for steps in trace["steps"] for step in steps)
    return -(-(sum(map(len, trace["prompts"])) + drawn + BATCH) // 256) * 256


@llama_cpp.llama_log_callback
def silent(level, text, data):
    pass


def main() -> None:
    question = json.loads(sys.stdin.readline())
    trace, threads = question["trace"], question["threads"]
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    size = sum(len(steps[0]["parents"]) for steps in trace["steps"]), num_cells(trace), threads
    sequences = Sequences(question["policy"], *size)
    if "greedy" in question:
        beams = Beams(sequences, trace["prompts"], 1)
        beams.step(beams.ids, [question["greedy"]] * len(beams.ids), make_sampler(is_greedy=True))
        print(json.dumps({"drawn": [text[-question["greedy"] :] for text in beams.texts]}), flush=True)
        return
    verifier = None
    if trace["has_verifier"] and question["line"] == "cached":
        verifier = CachedVerifier(question["verifier"], question["separator"], *size)
    elif trace["has_verifier"]:
        verifier = Reencoder(question["verifier"], question["separator"], question["max_length"], threads)
    sampler = make_sampler(is_greedy=False)
    run(sequences, verifier, sampler, trace, 1)  # warms
    if verifier is not None:
        verifier.num_tokens = 0
    seconds, _ = run(sequences, verifier, sampler, trace, len(trace["steps"][0]))
    answer = {
        "total_s": seconds,
        "verifier_tokens": verifier.num_tokens if verifier else 0,
        "peak_mb": peak_mb(),
        "versions": {"llama-cpp-python": llama_cpp.__version__},
    }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
