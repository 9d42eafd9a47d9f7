"""VBench in what it does with folders and lists, and in how it fails: as the variable STUB_VBENCH says.

The value of a video is a tenth for each of its bytes' hundreds; the score is the mean.
"""

import json
import os
import pickle
import sys
import time
from pathlib import Path

import torch

MODE = os.environ.get("STUB_VBENCH", "")


class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.full_info, self.out = device, full_info_dir, output_path
        os.makedirs(output_path, exist_ok=True)

    def evaluate(self, videos_path, name, dimension_list, local, read_frame, mode, imaging_quality_preprocessing_mode):
        assert (local, read_frame, mode) == (True, False, "vbench_standard")
        assert isinstance(self.device, torch.device)
        print("printed by a library")
        os.write(1, b"and by its native code\n")
        if MODE == "crash":
            print("native code gave up", file=sys.stderr)
            os._exit(3)
        if MODE == "exit":
            sys.exit("no such weights")
        if MODE == "hang":
            time.sleep(600)
        if MODE == "pickle":
            raise pickle.UnpicklingError("Weights only load failed")
        if MODE == "weights":
            torch.nn.Module("a", "b", "c").load_state_dict({"a": 0, "x": 0}, strict=False)
        (dimension,) = dimension_list
        names = os.listdir(videos_path)
        suffix = Path(names[0]).suffix
        results = []
        for entry in json.loads(Path(self.full_info).read_text(encoding="utf-8")):
            if dimension in entry["dimension"]:
                wanted = [f"{entry['prompt_en']}-{index}{suffix}" for index in range(5)]
                paths = [os.path.join(videos_path, one) for one in wanted if one in names]
                results += [{"video_path": path, "video_results": os.path.getsize(path) / 1e6} for path in paths]
        if MODE in ("skip", "skip color"):
            results.pop()
        if MODE == "nan":
            results[-1]["video_results"] = float("nan")
        values = [one["video_results"] for one in results]
        hub = Path(os.environ.get("TORCH_HOME", "none")) / "hub" / "checkpoints"
        told = {"hub": [str(path.resolve()) for path in hub.glob("*")], "videos": sorted(names), "cwd": os.getcwd()}
        with open(os.environ["STUB_LOG"], "a", encoding="utf-8") as log:
            print(json.dumps({"dimension": dimension, "cache": os.environ["VBENCH_CACHE_DIR"], **told}), file=log)
        path = os.path.join(self.out, f"{name}_eval_results.json")
        Path(path).write_text(json.dumps({dimension: [sum(values) / len(values), results]}))
