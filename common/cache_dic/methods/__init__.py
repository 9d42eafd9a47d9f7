"""The methods that come with the package, one file each; importing this package registers them."""

from cache_dic.methods import first_block_cache, taylorseer, teacache

__all__ = ["first_block_cache", "taylorseer", "teacache"]
