"""TaylorSeer (arXiv 2503.06923) and what its paper measures it against with the same schedule: FORA, and no cache."""

from cache_dic.forecast import Newton, Reuse, Taylor
from cache_dic.registry import register

register("taylorseer", interval=4, warmup_steps=3, paper="arXiv 2503.06923")(Taylor)
register("taylorseer_lite", engine="hidden", interval=4, warmup_steps=3, paper="arXiv 2508.02240")(Taylor)
register("newton", interval=4, warmup_steps=3)(Newton)
register("fora", interval=4, warmup_steps=3, paper="arXiv 2407.01425")(Reuse)
register("uncached", schedule="taylorseer", interval=1, warmup_steps=1)(Reuse)
