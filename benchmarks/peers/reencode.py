"""A PRM as search-and-learn runs it: every text is encoded from its start at every step. Used by the peers' processes."""

import torch
from loading import load
from transformers import AutoModelForTokenClassification


class Reencoder:
    def __init__(self, folder: str, separator: int, batch_size: int, device: str = "cpu"):
        self.model, self.device = load(AutoModelForTokenClassification, folder, device), device
        self.separator, self.batch_size, self.num_tokens = separator, batch_size, 0

    @torch.inference_mode()
    def score(self, texts: list[list[int]]) -> list[float]:
        """The probability of label 1 behind each text; texts of similar length share a batch, padded on the right."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        scores = [0.0] * len(texts)
        for begin in range(0, len(order), self.batch_size):
            rows = order[begin : begin + self.batch_size]
            ends = torch.tensor([len(texts[i]) for i in rows], device=self.device)
            longest = int(ends.max()) + 1
            padded = [texts[i] + [self.separator] * (longest - len(texts[i])) for i in rows]
            tokens = torch.tensor(padded, device=self.device)
            mask = torch.arange(longest, device=self.device) <= ends[:, None]
            logits = self.model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits
            read = torch.softmax(logits[torch.arange(len(rows), device=self.device), ends].float(), -1)[:, 1]
            self.num_tokens += int(ends.sum()) + len(rows)
            for i, value in zip(rows, read.tolist()):
                scores[i] = value
        return scores
