import sys
from pathlib import Path

# The programs of this folder import one another by name, as the script runs them.
sys.path.insert(0, str(Path(__file__).parent))
