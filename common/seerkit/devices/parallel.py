"""Sequence parallelism: the tokens of a video shared by processes, attention over all of them; weights shared by FSDP2.

Attention is the only place where tokens of two processes meet. Ulysses (arXiv 2309.14509) trades tokens for heads around
it by PyTorch's all-to-all, ring attention (arXiv 2310.01889) is PyTorch's own, and both together are laid out as in arXiv
2405.07719: a ring of groups of neighbouring ranks. Parts may differ in length. For sampling: nothing here has gradients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from cache_dic import UserError
from seerkit.devices.distributed import World
from seerkit.layers.attention import attention_backend, sdpa


@dataclass(frozen=True)
class Shard:
    """The part of a sequence that this process holds: contiguous tokens, one more in the first parts where they do not divide.

    mesh: all processes by rank, with the dimensions `ring` and `ulysses`; None for one process.
    """

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None

    def bounds(self, length: int, rank: int | None = None) -> slice:
        """The tokens of a rank, this process's own by default."""
        rank = self.rank if rank is None else rank
        base, longer = length // self.size, length % self.size  # not divmod, which torch.compile does not know
        first = rank * base + min(rank, longer)
        return slice(first, first + base + (rank < longer))

    def split(self, x: Tensor, dim: int = 1) -> Tensor:
        """This process's part of a tensor that holds all tokens."""
        part = self.bounds(x.shape[dim])
        return x.narrow(dim, part.start, part.stop - part.start)

    def gather(self, x: Tensor, length: int, dim: int = 1) -> Tensor:
        """All `length` tokens on every process, from the parts."""
        if self.size == 1:
            return x
        parts = (self.bounds(length, rank) for rank in range(self.size))
        return torch.cat(gather_parts(x, [part.stop - part.start for part in parts], dim), dim)

    def total(self, sums: Tensor) -> Tensor:
        """Sums over this process's tokens, added up over all processes."""
        if self.size > 1:
            sums = sums.clone()
            dist.all_reduce(sums)
        return sums


WHOLE = Shard()
"""One process holds everything."""


def gather_parts(x: Tensor, lengths: Sequence[int], dim: int) -> list[Tensor]:
    """The parts of all processes, by rank, from this one's; `lengths` are theirs along `dim`."""
    part = x.movedim(dim, 0)
    padded = part.new_zeros(max(lengths), *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return [part[:length].movedim(0, dim) for part, length in zip(parts, lengths, strict=True)]


def sequence_degrees(
    processes: int, heads: int, ulysses: int | None = None, ring: int | None = None
) -> tuple[int, int]:
    """Degrees of Ulysses and of the ring for so many processes and attention heads; ulysses · ring = processes.

    A degree left out takes what the other leaves, both left out are all Ulysses. Raises UserError where the degrees do not
    make up the number of processes, or Ulysses does not divide the heads.
    """
    for name, degree in (("ulysses", ulysses), ("ring", ring)):
        if degree is not None and (degree < 1 or processes % degree):
            raise UserError(
                f"{name} degree {degree} does not divide the number of processes, {processes}; start as many as the "
                "product of both degrees"
            )
    ulysses = ulysses or processes // (ring or 1)
    ring = ring or processes // ulysses
    if ulysses * ring != processes:
        raise UserError(f"degrees ulysses {ulysses} x ring {ring} must make up the number of processes, {processes}")
    if heads % ulysses:
        most = math.gcd(heads, processes)
        raise UserError(
            f"ulysses degree {ulysses} does not divide {heads} attention heads; give ulysses {most} and ring"
            f" {processes // most}"
        )
    return ulysses, ring


def start_sequence(world: World, *, heads: int, ulysses: int | None = None, ring: int | None = None) -> Shard:
    """Share sequences among all processes of `world`, each of which calls it; degrees as in `sequence_degrees`."""
    ulysses, ring = sequence_degrees(world.size, heads, ulysses, ring)
    if world.size == 1:
        return WHOLE
    mesh = init_device_mesh(world.device.type, (ring, ulysses), mesh_dim_names=("ring", "ulysses"))
    return Shard(world.rank, world.size, mesh)


def parallelize(model: nn.Module, shard: Shard, attention: str = "sdpa") -> None:
    """Let a video backbone work on this process's tokens, attending by the named backend to those of all.

    Every process calls it. Raises UserError for a backend that a ring cannot use.
    """
    model.shard = shard
    model.set_attention(attention_backend(attention) if shard.size == 1 else SequenceAttention(shard.mesh, attention))


class SequenceAttention:
    """`attend(q, k, v, keys=None)` for queries, keys and values (B, H, l, d) of this process; keys (B, l) of it or None.

    Where only some keys count, every process must hold one of each sample that does, as it holds tokens of the video.
    Ring attention merges the answers of parts by their log-sum-exp, so it needs PyTorch's kernels, `sdpa` or `flash4`.
    """

    def __init__(self, mesh: DeviceMesh, attention: str = "sdpa") -> None:
        self.attend = attention_backend(attention)
        self.ring, self.ulysses = mesh.get_group("ring"), mesh.get_group("ulysses")
        self.num_rings, self.degree = mesh.shape
        self.place = mesh.get_local_rank("ring")
        if self.num_rings > 1:
            if self.attend is not sdpa:
                raise UserError(f"ring attention cannot use attention backend {attention!r}; choose 'sdpa' or ring 1")
            _set_ring_options()
        # Lengths are exchanged between hosts, so that no device waits for them.
        self.hosts = dist.new_group(backend="gloo")

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> Tensor:
        lengths = self._lengths(q.shape[2])
        if not all(lengths):
            raise UserError(f"{sum(lengths)} tokens are too few for {len(lengths)} processes; start fewer")
        groups = [slice(first, first + self.degree) for first in range(0, len(lengths), self.degree)]
        masks = None
        if keys is not None:
            parts = gather_parts(keys, lengths, dim=1)
            masks = [torch.cat(parts[group], dim=1) for group in groups]
        own = lengths[groups[self.place]]
        q, k, v = (self._tokens_for_heads(x, own) for x in (q, k, v))
        out = self._ring(q, k, v, [sum(lengths[group]) for group in groups], masks)
        return self._heads_for_tokens(out, own)

    def _lengths(self, length: int) -> list[int]:
        """Tokens of every process. Asked for each time: a process cannot see when those of another change."""
        lengths = [torch.empty(1, dtype=torch.int64) for _ in range(self.num_rings * self.degree)]
        dist.all_gather(lengths, torch.tensor([length]), group=self.hosts)
        return torch.cat(lengths).tolist()

    def _tokens_for_heads(self, x: Tensor, lengths: list[int]) -> Tensor:
        """(B, H, l, d) -> (B, H / ulysses, tokens of the group, d)."""
        mine = rearrange(x, "b (u h) l d -> (u l) b h d", u=self.degree).contiguous()
        theirs = mine.new_empty(sum(lengths), *mine.shape[1:])
        dist.all_to_all_single(theirs, mine, lengths, [x.shape[2]] * self.degree, group=self.ulysses)
        return rearrange(theirs, "l b h d -> b h l d")

    def _heads_for_tokens(self, x: Tensor, lengths: list[int]) -> Tensor:
        """(B, H / ulysses, tokens of the group, d) -> (B, H, l, d)."""
        length = lengths[dist.get_rank(self.ulysses)]
        theirs = rearrange(x, "b h l d -> l b h d").contiguous()
        mine = theirs.new_empty(self.degree * length, *theirs.shape[1:])
        dist.all_to_all_single(mine, theirs, [length] * self.degree, lengths, group=self.ulysses)
        return rearrange(mine, "(u l) b h d -> b (u h) l d", u=self.degree)

    def _ring(self, q: Tensor, k: Tensor, v: Tensor, lengths: list[int], masks: list[Tensor] | None) -> Tensor:
        """Attention to the keys of all groups; lengths and masks (B, L) are the groups'."""
        if self.num_rings == 1:
            return self.attend(q, k, v, masks and masks[0])
        from torch.distributed.tensor.experimental._attention import _templated_ring_attention

        # Parts travel at one length; what was added is cut before it is looked at. Part i comes from i places back.
        k, v = (F.pad(x, (0, 0, 0, max(lengths) - x.shape[2])) for x in (k, v))
        sources = iter([(self.place - i) % self.num_rings for i in range(self.num_rings)])

        def attend_part(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
            source = next(sources)
            part = slice(lengths[source])
            return attend_with_lse(q, k[:, :, part], v[:, :, part], masks and masks[source])

        out, _ = _templated_ring_attention(self.ring, 2, attend_part, q, k, v)
        return out.to(q.dtype)


def _set_ring_options() -> None:
    """PyTorch's ring attention keeps its options in the process: no causal balancing, neighbours only, dtypes as given."""
    from torch.distributed.tensor.experimental._attention import _cp_options, set_rotate_method

    _cp_options.enable_load_balance = False
    _cp_options.convert_to_f32 = False
    set_rotate_method("alltoall")


def attend_with_lse(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """PyTorch's fused attention and the log-sum-exp of its scores: (B, H, L, d) and (B, H, L), both float32 at least."""
    aten, wide = torch.ops.aten, torch.promote_types(q.dtype, torch.float32)
    bias = None
    if keys is not None:  # whose rows begin at multiples of 16, as the kernel on CUDA asks
        bias = q.new_zeros(len(keys), math.ceil(keys.shape[1] / 16) * 16)[:, : keys.shape[1]]
        bias = bias.masked_fill_(~keys, -torch.inf)[:, None, None]  # (B, 1, 1, L)
    if not q.is_cuda:
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
    elif bias is None and q.dtype in (torch.float16, torch.bfloat16):
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v)
    else:
        bias = None if bias is None else bias.expand(*q.shape[:3], k.shape[2])
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, bias, True)
    return out.to(wide), lse[..., : q.shape[2]].to(wide)  # a kernel may round the number of rows up


def shard_weights(model: nn.Module, world: World) -> None:
    """Share the weights of a backbone among all processes by FSDP2, which gathers a block's while it runs.

    Blocks are the members of the model's module lists. Their modulation layers, which a modulation table replaces, are
    gathered apart from them, and tables of their own stay whole. Every process calls it with weights loaded and brought to
    their dtype, on the CPU where they do not fit the device; they are for sampling from then on.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(world.device.type, (world.size,))
    blocks = [block for part in model.children() if isinstance(part, nn.ModuleList) for block in part]
    model.requires_grad_(False)  # weights with gradients would have to be of one dtype
    tables = {table for block in blocks for table in block.parameters(recurse=False)}
    for table in tables:
        table.data = table.data.to(world.device)
    for block in blocks:
        for layer in [part for part in block.modules() if part is not block and hasattr(part, "gates")]:
            fully_shard(layer, mesh=mesh)
            register_fsdp_forward_method(layer, "gates")
        fully_shard(block, mesh=mesh, ignored_params=tables)
    fully_shard(model, mesh=mesh, ignored_params=tables)
    register_fsdp_forward_method(model, "modulation_table")


def shard_blocks(model: nn.Module, blocks: Sequence[nn.Module], world: World) -> None:
    """Share the weights of a model that is called as a whole, such as a text encoder, among all processes, block by block."""
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for part in (*blocks, model):
        fully_shard(part, mesh=mesh)
