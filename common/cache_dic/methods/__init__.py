"""The methods that come with the package, one file each; importing this package registers them."""

from cache_dic.methods import (  # isort: skip
    taylorseer,
    published_schedules,
    adams_bashforth,
    cg_taylor,
    chebbooster,
    dbcache,
    first_block_cache,
    freqca,
    hicache,
    magcache,
    speca,
    spectrum,
    teacache,
)

__all__ = [
    "adams_bashforth", "cg_taylor", "chebbooster", "dbcache", "first_block_cache", "freqca", "hicache", "magcache",
    "published_schedules", "speca", "spectrum", "taylorseer", "teacache",
]  # fmt: skip
