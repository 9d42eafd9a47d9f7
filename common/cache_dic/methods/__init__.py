"""The methods that come with the package, one file each; importing this package registers them."""

from cache_dic.methods import (  # isort: skip
    taylorseer,
    published_schedules,
    adams_bashforth,
    chebbooster,
    first_block_cache,
    freqca,
    hicache,
    magcache,
    spectrum,
    teacache,
)

__all__ = [
    "adams_bashforth", "chebbooster", "first_block_cache", "freqca", "hicache", "magcache", "published_schedules", "spectrum",
    "taylorseer", "teacache",
]  # fmt: skip
