"""From a masked network to a smaller one that computes the same, and back. Removing dead channels is exact."""

from prunelab.compaction.compact import Compacted, compact, expand
from prunelab.compaction.errors import CompactionError
from prunelab.compaction.index import ChannelIndex, count_channels, shrink

__all__ = ["ChannelIndex", "Compacted", "CompactionError", "compact", "count_channels", "expand", "shrink"]
