"""Part of a linear layer."""

import torch.nn.functional as F
from torch import Tensor, nn


def last_outputs(linear: nn.Linear, x: Tensor, count: int) -> Tensor:
    """The last `count` outputs of a linear layer, without the others: x (…, in) -> (…, count).

    Weights that are stored in fewer bits are restored whole.
    """
    stored = linear.weight
    weight = stored.restored(x.dtype) if hasattr(stored, "restored") else stored
    return F.linear(x, weight[-count:], None if linear.bias is None else linear.bias[-count:])
