"""The protocols that the server speaks, one file each. A new one is added to ``DIALECTS``."""

from wmjax.serving.dialect import Dialect
from wmjax.serving.dialects.openpi import OpenPI

DIALECTS: dict[str, type[Dialect]] = {dialect.name: dialect for dialect in (OpenPI,)}
