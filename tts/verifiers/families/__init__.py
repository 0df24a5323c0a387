"""Families of reward models: one file each, and nothing else of the package knows them."""

from tts.verifiers.families import genrm, math_shepherd, qwen_math, reward_model, rlhflow, skywork, trl
from tts.verifiers.families.base import FAMILIES, Facts, Family, Head, detect, family, make

__all__ = [
    "FAMILIES",
    "Facts",
    "Family",
    "Head",
    "detect",
    "family",
    "genrm",
    "make",
    "math_shepherd",
    "qwen_math",
    "reward_model",
    "rlhflow",
    "skywork",
    "trl",
]
