"""Verifiers: what scores the steps of a search."""

from tts.verifiers.checkpoint import Checkpoint

__all__ = ["Checkpoint"]
