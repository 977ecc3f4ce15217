"""Files and folders appear whole, with the rights the user's umask gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MADE = """
import os, sys
from pathlib import Path
os.umask(int(sys.argv[2], 8))
from medssl.files import new_folder, write_text
out = Path(sys.argv[1])
(out / "usual").mkdir()
(out / "usual" / "file").write_text("")
with new_folder(out / "ours") as folder:
    write_text(folder / "file", "")
print(oct(os.umask(0o022)))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", ["0o077", "0o027", "0o002", "0o022"])
def test_what_is_written_has_the_rights_of_any_file_the_user_makes(tmp_path: Path, umask: str) -> None:
    out = subprocess.run([sys.executable, "-c", MADE, str(tmp_path), umask], check=True, capture_output=True, text=True)
    assert int(out.stdout, 8) == int(umask, 8)
    for name in (".", "file"):
        usual, ours = (tmp_path / kind / name for kind in ("usual", "ours"))
        assert ours.stat().st_mode == usual.stat().st_mode
