"""A sync on many machines: the extra `adventures[distributed]`."""

from __future__ import annotations

import os

# Neither of them shall tell its makers that it is used.
for _name, _value in (("DO_NOT_TRACK", "1"), ("DAFT_ANALYTICS_ENABLED", "0"), ("RAY_USAGE_STATS_ENABLED", "0")):
    os.environ.setdefault(_name, _value)

try:
    from adventures.distributed.runner import DaftRunner
except ImportError as error:
    raise ImportError(f"a sync by Daft needs more packages: pip install 'adventures[distributed]' ({error})") from error

__all__ = ["DaftRunner"]
