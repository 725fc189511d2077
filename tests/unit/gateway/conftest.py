from __future__ import annotations

import sys
from pathlib import Path

E2E = Path(__file__).resolve().parents[2] / "e2e"
# The fake spine, the raw client and our servers live with the end-to-end tests, which share them.
sys.path[:0] = [path for path in (str(E2E), str(E2E / "servers"), str(E2E.parent)) if path not in sys.path]
