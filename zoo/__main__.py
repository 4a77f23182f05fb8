"""`python -m zoo`: the command line, safe from the files of the folder in which it is started."""

import sys
from pathlib import Path

# python -m puts the current folder first; a user's own audio.py there would hide this project's package
if sys.path and Path(sys.path[0] or ".").resolve() == Path.cwd().resolve() != Path(__file__).resolve().parent.parent:
    del sys.path[0]

from zoo.cli import main

main()
