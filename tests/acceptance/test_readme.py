"""The README's story, as a reader would type it: every bash block, in order, against a real service."""

import os
import re
import subprocess
from pathlib import Path

from tests.acceptance.conftest import Stack

ROOT = Path(__file__).parents[2]


def test_the_whole_story_in_curl_works_as_written(stack: Stack, tmp_path: Path) -> None:
    story = "\n".join(re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL))
    assert story.count("$STILLHOUSE_URL/v1/") > 6
    quick = story.replace("train_teacher.py example", "train_teacher.py example --epochs 1")
    quick = quick.replace('"epochs": 3', '"epochs": 1')
    assert quick.count("--epochs 1") == quick.count('"epochs": 1') == 1
    for name in (".venv", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", quick],
        cwd=tmp_path,
        env=os.environ | {"STILLHOUSE_URL": stack.url, "STILLHOUSE_API_KEY": stack.api_key},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert "torch.Size([2, 10])" in done.stdout
    assert "after recovering KL" in done.stdout
    assert done.stdout.rstrip().split("\n")[-1].startswith("mdl_")
    assert {path.name for path in (tmp_path / "student").iterdir()} >= {"model.pt2", "model.safetensors", "README.md"}
