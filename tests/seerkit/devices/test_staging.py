"""Components on the device for a while; the meta device stands for an accelerator, from which nothing could be read back."""

import pytest
import torch
from torch import Tensor, nn

from seerkit.devices.staging import decode_singly, staged_on


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return made.eval()


def test_back_where_it_was(module):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    pointers = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    with staged_on("meta", module, True) as staged:
        assert staged is module
        assert all(tensor.is_meta for tensor in module.state_dict().values()), "buffers, too"
    state = module.state_dict()
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert {name: tensor.data_ptr() for name, tensor in state.items()} == pointers, "nothing was copied"


def test_after_an_error(module):
    with pytest.raises(RuntimeError, match="out of memory"), staged_on("meta", module, True):
        raise RuntimeError("out of memory")
    assert not any(tensor.is_meta for tensor in module.state_dict().values())


def test_without_offloading_it_stays(module):
    with staged_on("meta", module, False):
        pass
    assert module[0].weight.is_meta


@pytest.mark.parametrize("offload", [False, True])
def test_images_are_decoded_one_at_a_time(offload):
    class Autoencoder(nn.Module):
        calls = 0

        def decode(self, latents: Tensor) -> Tensor:
            assert len(latents) == 1
            assert torch.is_inference_mode_enabled()
            self.calls += 1
            return 2 * latents.to(torch.bfloat16)

    autoencoder, latents = Autoencoder(), torch.arange(6.0).view(3, 2, 1, 1)
    images = decode_singly(autoencoder, latents, torch.device("cpu"), offload=offload)
    assert images.dtype == torch.float32
    assert torch.equal(images, 2 * latents)
    assert autoencoder.calls == 3
