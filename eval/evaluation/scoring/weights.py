"""Published files of weights that measures need: where each is looked for, and whether it is what its name says.

None is ever downloaded. A file of the right name that is another one is refused, unless stand-ins are allowed by the
environment variable of STAND_INS; whatever is measured with one says so in its title.
"""

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_dic import UserError
from seerkit.weights.checkpoints import NotFoundError, Published, find_weights

STAND_INS = "TAYLORSEER_STAND_IN_WEIGHTS"
"""Set to 1, files whose contents are not those published are taken: random ones of the right layout, for tries and tests."""


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A file of weights. file: its name and address. sha256: how its digest begins. size: in words."""

    file: Published
    sha256: str
    size: str

    def missing(self) -> list[str]:
        """What has to be done before the file can be used, in a line; none where it is there."""
        try:
            path = self._found()
        except NotFoundError:
            places = " or ".join(str(place.parent) for place in (*self.file.caches(), self.file.place))
            return [f"{self.file.name} ({self.size}), looked for in {places}; fetch it with `{self.file.command}`"]
        digest = sha256(path)
        if digest.startswith(self.sha256) or stand_ins_allowed():
            return []
        return [
            f"{self.file.name}, and {path} is another file: its sha256 begins with {digest[: len(self.sha256)]}; fetch it anew "
            f"with `{self.file.command}`, or set {STAND_INS}=1 to try the command with a stand-in, whose figures mean nothing"
        ]

    def find(self) -> Path:
        """The file; UserError where `missing` has a line."""
        if lines := self.missing():
            raise UserError(lines[0])
        return self._found()

    def facts(self) -> dict[str, Any]:
        """For `Reading.facts`: name and digest, and whether the file is a stand-in."""
        digest = sha256(self.find())
        stand_in = {} if digest.startswith(self.sha256) else {"stand_in_weights": True}
        return {"weights": self.file.name, "sha256": digest[:16], **stand_in}

    def _found(self) -> Path:
        for place in self.file.caches():  # of torch.hub, where the libraries themselves would look, or of the model hub
            if place.is_file():
                return place
        return find_weights(None, [self.file], download=False)


def stand_ins_allowed() -> bool:
    return os.environ.get(STAND_INS) == "1"


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal; read once while it does not change."""
    status = path.stat()
    return _sha256(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, status: tuple[int, ...]) -> str:
    """Of a file of this status."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
