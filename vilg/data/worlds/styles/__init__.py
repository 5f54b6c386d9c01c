"""Emoji in ten art styles with Chinese names: views of one thing that differ in style, for ERNIE-ViL 2.0 (2209.15270).

The pictures come from ten packages of npm, the names and key words from CLDR; tools/prepare_styles.py writes them as a
folder like users' own.
"""
from vilg.data.worlds.styles.packages import STYLES
from vilg.data.worlds.styles.splits import SPLITS, SplitConfig
from vilg.data.worlds.styles.world import World, collect, gather
from vilg.data.worlds.styles.write import check_output, write

__all__ = ["SPLITS", "STYLES", "SplitConfig", "World", "check_output", "collect", "gather", "write"]
