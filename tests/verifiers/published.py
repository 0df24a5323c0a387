"""The published procedures, each written straight from its source: the whole text is encoded again for every score.

Every function takes a folder, a question and the raw texts of the steps so far, and gives the score of the last step.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()


@cache
def parts(folder):
    """Trunk, tokenizer and all tensors of a checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder), load_file(f"{folder}/model.safetensors")


@torch.no_grad()
def hidden(folder, ids):
    return parts(folder)[0].base_model(torch.tensor([ids])).last_hidden_state[0]


@torch.no_grad()
def plus_against_minus(folder, ids, good, bad):
    """f32[T]: the probability of `good` of the two at every position."""
    return parts(folder)[0](torch.tensor([ids])).logits[0][:, [good, bad]].softmax(-1)[:, 0]


def math_shepherd(folder, question, steps):
    """The model's card: candidate tokens `+ -`, scores wherever the step tag stands."""
    tokenizer = parts(folder)[1]
    good, bad = tokenizer.encode("+ -")[1:]
    tag = tokenizer.encode("ки")[-1]
    ids = tokenizer.encode(question + " " + "\n".join(step.strip() + " ки" for step in steps))
    scores = plus_against_minus(folder, ids, good, bad)[torch.tensor(ids) == tag]
    assert len(scores) == len(steps)
    return float(scores[-1])


def math_shepherd_as_published(folder, question, steps, system):
    """search-and-learn: the system prompt, the tag before each empty line."""
    tokenizer = parts(folder)[1]
    good, bad = tokenizer.encode("+ -")[1:]
    text = "".join(steps).replace("\n\n", " ки\n\n")
    text = text if text[-2:] == "\n\n" else text + " ки"
    ids = tokenizer.encode(system + "\n" + question + "\n" + " " + text)
    tag = tokenizer.encode("ки")[-1]
    marked = system + "\n" + question + "\n" + " " + text
    if tokenizer.encode(marked[: marked.rindex("ки") + 2])[-1] != tag:
        return math.nan  # two blanks before the tag are one token: the published code finds a score too few
    return float(plus_against_minus(folder, ids, good, bad)[torch.tensor(ids) == tag][-1])


def rlhflow_of_texts(folder, question, texts):
    """prm_evaluate.py: a conversation of steps and `+`; the answer is predicted at the position before it."""
    tokenizer = parts(folder)[1]
    conversation = []
    for k, text in enumerate(texts):
        conversation += [{"role": "user", "content": question + " " + text if k == 0 else text}]
        conversation += [{"role": "assistant", "content": "+"}]
    ids = tokenizer(tokenizer.apply_chat_template(conversation, tokenize=False), add_special_tokens=False)["input_ids"]
    good, bad = tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]
    assert ids[-2] == good  # behind it stands the end of the turn
    return float(plus_against_minus(folder, ids, good, bad)[-3])


def rlhflow(folder, question, steps):
    return rlhflow_of_texts(folder, question, [step.strip() for step in steps])


def rlhflow_as_published(folder, question, steps):
    return rlhflow_of_texts(folder, question, "".join(steps).split("\n\n"))


@torch.no_grad()
def qwen_of_answer(folder, question, answer):
    """The model's card: a two-label head of two layers at every <extra_0> of the assistant's turn."""
    tokenizer, tensors = parts(folder)[1:]
    messages = [
        {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
    states = hidden(folder, ids)[torch.tensor(ids) == tokenizer.encode("<extra_0>")[0]]
    inner = torch.relu(states @ tensors["score.0.weight"].T + tensors["score.0.bias"])
    return float((inner @ tensors["score.2.weight"].T + tensors["score.2.bias"]).softmax(-1)[-1, 1])


def qwen_math(folder, question, steps):
    return qwen_of_answer(folder, question, "<extra_0>".join(step.strip() for step in steps) + "<extra_0>")


def qwen_math_as_published(folder, question, steps):
    return qwen_of_answer(folder, question, "".join(steps).replace("\n\n", "<extra_0>") + "<extra_0>")


@torch.no_grad()
def skywork_of_lines(folder, question, lines):
    """prepare_input: lines apart, the newline's id behind each, a sigmoid of the value head there."""
    tokenizer, tensors = parts(folder)[1:]
    newline = tokenizer.encode("\n")[-1]
    ids = tokenizer.encode(tokenizer.bos_token + question + "\n")
    for line in lines:
        ids = ids + (tokenizer.encode(line) if line else []) + [newline]
    state = hidden(folder, ids)[-1]
    return float(torch.sigmoid(tensors["v_head.summary.weight"][0] @ state + tensors["v_head.summary.bias"][0]))


def skywork(folder, question, steps):
    lines = [[line for line in step.strip().split("\n") if line.strip()] or [""] for step in steps]
    return skywork_of_lines(folder, question, [line for step in lines for line in step])


def skywork_as_published(folder, question, steps):
    return skywork_of_lines(folder, question, "".join(steps).split("\n"))


@torch.no_grad()
def trl(folder, question, steps):
    """PRMTrainer.tokenize_row: prompt, then completions and separators, each tokenized apart."""
    tokenizer, tensors = parts(folder)[1:]
    ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    for step in steps:
        ids = ids + tokenizer(step.rstrip("\n"), add_special_tokens=False)["input_ids"]
        ids = ids + tokenizer.encode("\n", add_special_tokens=False)
    state = hidden(folder, ids)[-1]
    return float((tensors["score.weight"] @ state + tensors["score.bias"]).softmax(-1)[1])


@torch.no_grad()
def reward_model(folder, question, steps):
    """Sequence classification: the conversation through the chat template, the head at the last token, a sigmoid."""
    tokenizer, tensors = parts(folder)[1:]
    conversation = [{"role": "user", "content": question}, {"role": "assistant", "content": "".join(steps)}]
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    state = hidden(folder, tokenizer(text, add_special_tokens=False)["input_ids"])[-1]
    return float(torch.sigmoid(tensors["score.weight"][0] @ state))


def genrm(folder, question, steps):
    """Direct GenRM: the next token behind the question whether the answer is right, Yes against No."""
    tokenizer = parts(folder)[1]
    turn = {"role": "user", "content": f"{question}\n\n{''.join(steps)}\n\nIs the answer correct (Yes/No)?"}
    text = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    yes, no = tokenizer.encode("Yes")[0], tokenizer.encode("No")[0]
    return float(plus_against_minus(folder, tokenizer(text, add_special_tokens=False)["input_ids"], yes, no)[-1])


@torch.no_grad()
def likelihood(folder, prompt, text):
    """exp of the sum of log-probabilities of the text's tokens behind the prompt's."""
    model, tokenizer, _ = parts(folder)
    new = tokenizer(text, add_special_tokens=False)["input_ids"]
    logp = model(torch.tensor([prompt + new])).logits[0].double().log_softmax(-1)
    begin = len(prompt) - 1
    return float(logp[torch.arange(begin, begin + len(new)), torch.tensor(new)].sum().exp()) if new else 1.0
