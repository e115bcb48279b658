"""config.json of models as the hub has them, and how many parameters their makers count."""

from __future__ import annotations

import json

from tests.coldstream import ROOT

FOLDER = ROOT / "image" / "models"
_PARAMETERS = {
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
    "Phi-4": 14_659_507_200,
    "Phi-3.5-mini": 3_821_079_552,
    "Mixtral-8x7B": 46_702_792_704,
    "Qwen3-30B-A3B": 30_532_122_624,
}

# Each config with its model's number of parameters.
HUB = {name: (json.loads((FOLDER / f"{name}.json").read_text()), count) for name, count in _PARAMETERS.items()}
