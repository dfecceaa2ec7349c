"""Stands in for `launch.local.rank`: does what the argument of its rank says, word by word, without importing torch."""

import os
import signal
import sys
import time
from pathlib import Path

from launch.local.rank import end_with_launcher

end_with_launcher()
words = iter(sys.argv[1 + int(os.environ["RANK"])].split())
for word in words:
    value = next(words)
    if word == "sleep":
        time.sleep(float(value))
    elif word == "say":
        print(f"error: {value}", file=sys.stderr)
    elif word == "note":
        print(value, file=sys.stderr, flush=True)
    elif word == "kill":
        os.kill(os.getpid(), int(value))
    elif word == "parent":
        os.kill(os.getppid(), signal.Signals(int(value)))
    elif word == "pid":
        Path(value).write_text(str(os.getpid()))
    elif word == "env":
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        Path(value).write_text("\n".join(f"{name}={os.environ[name]}" for name in names))
    elif word == "exit":
        sys.stderr.flush()
        os._exit(int(value))
