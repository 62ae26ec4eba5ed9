"""Videos of episodes, and the strips drawn below them."""

import re

VIDEO_NAME = re.compile(r"(?P<suite>.+)-(?P<task>\d+)__(?P<init>.+)-(?P<index>\d+)__(?P<outcome>[a-z]+)(__\d+)?")
"""The name of a video's file without its ending: task, episode, outcome, and a number if there are several."""
