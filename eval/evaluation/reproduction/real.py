"""What real images look like to a network: mean and covariance of its features, kept beside this file, so that a smoke run
measures its distance from real images without fetching any.

python -m evaluation.reproduction.real     from eval/: make the file anew, from the images of scripts/get_fashion_mnist.sh

The file has the mean and the upper triangle of the covariance in float32, 0.5 MB for 512 features. The network is SqueezeNet:
of the distances that are tried on Fashion-MNIST (results/metrics/fashion-mnist.json) its own tells 50 steps from 20 with the
fewest samples. Statistics serve a distance of the two Gaussians alone, neither a kernel distance nor precision and recall.
"""

import json
from pathlib import Path

import numpy as np

from cache_dic import UserError
from evaluation.metrics import GaussianSums
from evaluation.scoring.extractors import find_extractor

PATH = Path(__file__).with_name("fashion-mnist-real.safetensors")
NETWORK = "squeezenet"
MEASURE = f"fd-{NETWORK}"
SHARD = 500  # images that are looked at together


class RealImages:
    """The test images of Fashion-MNIST as a reference set (`evaluation.scoring.samples.Samples`), known by statistics alone.

    UserError where the file was made with other weights of the network, or other settings, than are at hand.
    """

    is_video = False
    names = ()

    def __init__(self, path: Path = PATH) -> None:
        from safetensors import safe_open

        self.path = path
        with safe_open(path, framework="np") as file:
            self.mean, triangle = (file.get_tensor(name).astype(np.float64) for name in ("mean", "triangle"))
            facts = json.loads(file.metadata()["facts"])
        self.images = facts["images"]
        if facts["reading"] != _reading_facts():
            raise UserError(f"{path} was made with another {NETWORK}; make it anew with `{facts['made_by']}`")
        upper = np.zeros((self.mean.size, self.mean.size))
        upper[np.triu_indices(self.mean.size)] = triangle
        self.covariance = upper + np.triu(upper, 1).T

    def read(self, index: int) -> np.ndarray:
        raise UserError(f"{self.path} holds statistics and no images, of which there is no sample {index}")

    def digest(self) -> str:
        from seerkit.io.files import content_digest

        return content_digest(self.path)

    def statistics(self, mean: str, covariance: str) -> tuple[np.ndarray, np.ndarray] | None:
        known = (mean, covariance) == (f"mu_{NETWORK}", f"sigma_{NETWORK}")
        return (self.mean, self.covariance) if known else None


def _reading_facts() -> dict[str, object]:
    """What the network's features depend on, as JSON has it."""
    return json.loads(json.dumps(dict(find_extractor(NETWORK).reading().facts)))


def make() -> None:
    """Write the file; FileNotFoundError says how the images are had."""
    import torch

    from seerkit.data.fashion_mnist import load_fashion_mnist
    from seerkit.weights.checkpoints import save_tensors

    images, _ = load_fashion_mnist("test")
    pixels = images.permute(0, 2, 3, 1).repeat(1, 1, 1, 3).numpy()
    extractor, sums = find_extractor(NETWORK), GaussianSums()
    for first in range(0, len(pixels), SHARD):
        sums.add(extractor.features(pixels[first : first + SHARD]))
    mean, covariance = sums.statistics()
    facts = {
        "images": f"the {sums.count} test images of Fashion-MNIST",
        "reading": _reading_facts(),
        "made_by": "python -m evaluation.reproduction.real",
    }
    tensors = {"mean": mean, "triangle": covariance[np.triu_indices(mean.size)]}
    made = {name: torch.from_numpy(values.astype(np.float32)) for name, values in tensors.items()}
    save_tensors(PATH, made, {"facts": json.dumps(facts)})


if __name__ == "__main__":
    make()
    print(PATH)
