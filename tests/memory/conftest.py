"""Makes this folder's helpers importable, here and when pytest collects them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
