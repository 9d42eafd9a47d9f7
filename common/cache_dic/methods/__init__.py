"""The methods that come with the package, one file each; importing this package registers them."""

from cache_dic.methods import taylorseer

__all__ = ["taylorseer"]
