"""The methods that come with the package, one file each; importing this package registers them."""

from cache_dic.methods import (  # noqa: F401  # isort: skip
    taylorseer,
    published_schedules,
    adams_bashforth,
    cg_taylor,
    chebbooster,
    clusca,
    dbcache,
    delta_dit,
    easycache,
    first_block_cache,
    fastercache,
    freqca,
    hicache,
    magcache,
    pab,
    seacache,
    speca,
    spectrum,
    teacache,
    toca,
)
