"""The demo model against transformers, which is who its folder is written for."""

from __future__ import annotations

from pathlib import Path


def test_transformers_generates_the_right_answer(demo_model_dir: Path) -> None:
    """AutoTokenizer and AutoModel load the folder as it is, and the model knows the capital of France."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model_dir)
    model = AutoModelForCausalLM.from_pretrained(demo_model_dir, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]

    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
