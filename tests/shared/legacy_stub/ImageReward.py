"""ImageReward in what it takes and how it fails: weights are a JSON list of the names of tensors."""

import json
import os
from pathlib import Path

import torch


class Model(torch.nn.Module):
    def score(self, prompt: str, image: str) -> float:
        size = os.path.getsize(image)
        if size == 0:
            raise OSError("cannot identify image file")
        return float("nan") if prompt == "nan" else len(prompt) + size / 1000


def load(name: str, device: object, med_config: str) -> Model:
    assert isinstance(device, torch.device)
    assert Path(med_config).is_file()
    print("load checkpoint from", name)
    with open(os.environ["STUB_LOG"], "a", encoding="utf-8") as log:
        print(json.dumps({"loaded": name, "cwd": os.getcwd()}), file=log)
    model = Model("blip.a", "blip.embeddings.position_ids", "mlp.b")
    model.load_state_dict(dict.fromkeys(json.loads(Path(name).read_text())), strict=False)
    return model
