"""Records in, one self-contained HTML page out: no network, no scripts, no torch.

>>> from pathlib import Path
>>> from groundthink import report
>>> page = report.build(Path("runs/demo"))  # doctest: +SKIP
"""

from groundthink.report.page import build
from groundthink.report.read import RecordError

__all__ = ["RecordError", "build"]
