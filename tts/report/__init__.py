"""Pictures of results. Needs matplotlib: `pip install "tts-kernels[plot]"`."""
