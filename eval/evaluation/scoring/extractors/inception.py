"""The Inception of FID, by way of torch-fidelity, with the layer that sFID needs and torch-fidelity lacks.

torch-fidelity's conversion of the TensorFlow graph of 2015-12-05, whose bilinear resizing to 299 pixels and normalisation it
repeats. sFID's layer is the graph's `mixed_6/conv`, the first branch of its kind: by the order of blocks Mixed_6d.branch1x1, of
which ADM takes 7 channels of 192, flattened place by place (openai/guided-diffusion, evaluations/evaluator.py).
"""

from pathlib import Path

import torch
from torch import Tensor

from cache_dic import UserError
from evaluation.scoring.extractors import Extractor, Network, find_published
from seerkit.weights.checkpoints import Published, read_state

DIGEST = "6726825d"  # the first of the sha256 of the published file, and the end of its names
FILES = (
    Published(
        f"weights-inception-2015-12-05-{DIGEST}.pth",
        url=f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-{DIGEST}.pth",
    ),
    Published(
        f"pt_inception-2015-12-05-{DIGEST}.pth",
        url=f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-{DIGEST}.pth",
    ),
)
ENV = "FID_INCEPTION"  # names another file
SPATIAL_CHANNELS = 7


def _inception(path: Path, device: torch.device) -> Network:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    read_state(path)  # that it is a file of tensors, and whole, before torch-fidelity unpickles whatever it is
    try:
        network = FeatureExtractorInceptionV3(
            "fid", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
    except RuntimeError as error:
        raise UserError(f"{path} does not hold the tensors of FID's Inception; {str(error).splitlines()[0]}") from error
    network.to(device)
    seen: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda *given: seen.append(given[2]))

    def features(images: Tensor) -> dict[str, Tensor]:
        pool, logits = network(images)
        spatial = seen.pop()[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return {"pool": pool, "spatial": spatial, "logits": logits}

    return features


EXTRACTORS = {
    "inception": Extractor(
        name="inception",
        title="FID's Inception",
        layers={"pool": 2048, "spatial": 17 * 17 * SPATIAL_CHANNELS, "logits": 1008},
        seen="TensorFlow 1's bilinear to 299 x 299, (x - 128) / 128",
        find=lambda: find_published(FILES, ENV, "95.7 MB", DIGEST),
        load=_inception,
        packages=("torch_fidelity",),
    )
}
