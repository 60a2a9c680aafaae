"""The tutorial, done as it is written: every `sh` block, in order, in an empty directory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
SHIM = "#!/bin/sh\nexec {python} -c 'from selfalign.cli.main import main; main()' \"$@\"\n"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The directory in which the tutorial was done, and what each block printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    command = folder / "bin" / "selfalign"
    command.parent.mkdir()
    command.write_text(SHIM.format(python=sys.executable), encoding="utf-8")
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    blocks = re.findall(r"^```sh\n(.*?)^```$", TUTORIAL.read_text(encoding="utf-8"), re.M | re.S)
    printed = []
    for block in blocks:
        result = subprocess.run(
            ["/bin/sh", "-e", "-c", block], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"
        printed.append(result.stdout)
    return folder / "runs" / "tutorial", printed


@pytest.mark.embedded
def test_every_command_of_the_tutorial_does_what_the_tutorial_says(done):
    run, printed = done
    assert "sft/train" in printed[1]
    assert "14 of 14 stages done" in printed[3]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "run_started" for event in events) == 3  # killed, to its end, beta
    assert (run / "report.html").is_file()
    assert json.loads(printed[4].splitlines()[0])["messages"]
    assert "stale" in printed[5]
    assert [path.name for path in (run / "stale").iterdir()]
    assert (run / "iteration-1" / "model" / "model.safetensors").is_file()
    assert "judge" in printed[-1]
    assert (run / "evaluation" / "table.md").is_file()
