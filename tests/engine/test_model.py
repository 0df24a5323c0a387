"""Loading: token bytes, end-of-text ids, dtypes, and the probe that refuses what paged attention would run wrongly."""

import json

import pytest
import torch
from tiny_models import make_folder, make_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import CohereConfig, CohereForCausalLM, PreTrainedTokenizerFast

from tts.engine.model import Model, resolve_dtype, token_bytes


def test_byte_level_tokens_give_their_bytes_and_special_tokens_none():
    tokenizer = make_tokenizer()
    table = token_bytes(tokenizer, len(tokenizer) + 3)
    text = "the é\n\nend<|end|>"
    ids = tokenizer(text)["input_ids"]
    assert b"".join(table[i] for i in ids).decode() == "the é\n\nend"
    assert table[len(tokenizer) :] == [b""] * 3


def test_sentencepiece_like_tokens_give_blanks_and_raw_bytes():
    vocab = {"<unk>": 0, "▁the": 1, "▁": 2, "<0xC3>": 3, "<0xA9>": 4, "end": 5}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    table = token_bytes(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"), 6)
    assert table == [b"", b" the", b" ", b"\xc3", b"\xa9", b"end"]


def test_every_end_of_text_id_of_config_generation_config_and_tokenizer_counts(tmp_path):
    folder = make_folder(tmp_path, "llama", eos_token_id=[7, 9])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 11]}))
    model = Model.load(folder)
    assert model.eos_ids == sorted({7, 9, 11, model.tokenizer.eos_token_id})


def test_a_model_that_scales_its_logits_is_refused_by_the_probe(tmp_path):
    tokenizer = make_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    config = CohereConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, logit_scale=0.25, pad_token_id=0, bos_token_id=1)
    CohereForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="logits through paged attention differ from its own"):
        Model.load(tmp_path)


def test_a_float32_checkpoint_stays_float32_and_a_half_one_becomes_what_the_machine_multiplies():
    class Config:
        dtype = torch.float32

    cpu = torch.device("cpu")
    assert resolve_dtype("auto", Config, cpu) is torch.float32
    Config.dtype = torch.float16
    has_bf16 = torch.cpu._is_avx512_bf16_supported()
    assert resolve_dtype("auto", Config, cpu) is (torch.bfloat16 if has_bf16 else torch.float32)
    assert resolve_dtype("float16", Config, cpu) is torch.float16


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_model_runs_and_passes_the_probe(tmp_path, dtype):
    model = Model.load(make_folder(tmp_path, "qwen2", 7), dtype=dtype)
    assert str(model.dtype) == f"torch.{dtype}" and model.logits(torch.zeros(2, 112, dtype=model.dtype)).dtype is model.dtype


def test_a_folder_without_safetensors_is_not_read(tmp_path):
    folder = make_folder(tmp_path, "llama")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises((OSError, ValueError), match="safetensors"):
        Model.load(folder)


def test_an_end_of_text_id_that_the_head_cannot_give_is_left_out(tmp_path):
    folder = make_folder(tmp_path, "llama", eos_token_id=[7, 10**6])
    model = Model.load(folder)
    assert model.eos_ids == sorted({7, model.tokenizer.eos_token_id})
