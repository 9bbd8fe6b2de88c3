"""Which part of an archive is kept apart from training, for a reward model's temperature."""

from __future__ import annotations

import zlib

CALIBRATION_SHARE = 0.15  # of the stories, or queries


def is_kept_apart(name: str) -> bool:
    """Whether all that belongs to the story, or query, of this name is; by a hash, so that it always is."""
    return zlib.crc32(name.encode()) / 2**32 < CALIBRATION_SHARE
