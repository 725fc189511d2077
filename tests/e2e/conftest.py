from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The fake spine, the worlds and our servers are modules of this folder.
sys.path[:0] = [path for path in (str(HERE), str(HERE / "servers")) if path not in sys.path]
