#!/usr/bin/env python3
"""SLURM's commands as far as launchers call them, over a JSON file: called by the name of a command."""

import json
import os
import re
import sys
import time
from pathlib import Path

state_file = Path(os.environ["FAKE_SLURM"])
state = json.loads(state_file.read_text())
command, words = Path(sys.argv[0]).name, sys.argv[1:]
state["calls"].append([command, *words])
foreign = ("SLURM", "PMI", "SQUEUE", "SINFO", "SACCT", "SCONTROL", "SRUN")
state["foreign"][command] = sorted(name for name in os.environ if name.startswith(foreign))


def option(name: str) -> str:
    return next((word.partition("=")[2] for word in words if word.startswith(f"--{name}=")), "")


def tasks(job: dict[str, str]) -> list[str]:
    match = re.fullmatch(r"0-(\d+)(%\d+)?", job.get("array", ""))
    return [f"{job['id']}_{number}" for number in range(int(match[1]) + 1)] if match else [job["id"]]


code, error = 0, ""
if command in state["hangs"]:
    state_file.with_name("hangs").touch()
    time.sleep(60)
broken = next((name for name in (command, " ".join([command, *words[:1]])) if name in state["broken"]), "")
if broken:
    code, error = 1, state["broken"][broken]
elif command == "sbatch":
    script = Path(words[0]).read_text()
    if "job-name=" + state.get("refuses", "-") in script:
        sys.exit("sbatch: error: Batch job submission failed: Requested time limit is invalid")
    fields = {key: value.strip("'") for key, value in re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.MULTILINE)}
    number, variables = str(len(state["jobs"]) + 1), sorted(name for name in os.environ if name.startswith("SBATCH_"))
    state["jobs"].append({**fields, "id": number, "script": script, "sbatch_variables": variables})
    print(f"Submitted batch job {number}")
elif command == "squeue":
    for job in state["jobs"]:
        for task in tasks(job) if job["job-name"] == option("name") else []:
            if task not in state["gone"] and job["id"] not in state["gone"]:
                print(f"{task}|{state['states'].get(task, 'PENDING')}|Priority|node1|{job.get('comment', '(null)')}")
elif command == "scancel":
    state["gone"] += words
elif command == "scontrol" and words[0] == "show":
    found = state["scontrol"].get(words[-1])
    code, error = (0, "") if found else (1, "slurm_load_jobs error: Invalid job id specified")
    print(found or "")
elif command in ("sinfo", "sacct", "sacctmgr"):
    print(state[command], end="")
state_file.write_text(json.dumps(state))
if error:
    print(error, file=sys.stderr)
sys.exit(code)
