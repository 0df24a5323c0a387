"""Beam search and DVTS by the rules of huggingface/search-and-learn, where they differ from ours; its best-of-N is ours."""

from tts.strategies.search_and_learn import beam_search, dvts

__all__ = ["beam_search", "dvts"]
