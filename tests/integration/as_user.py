"""Run `dfer` commands one after another, some as another user: python -m tests.integration.as_user UID FIRST THEN.

FIRST and THEN are JSON lists of commands. The first ones run as root, so that what they import late is there: Python
itself may lie in root's home. Prints a JSON list of [exit code, stdout, stderr] of all others.
"""

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout

from dfer import __main__ as cli


def main(uid: int, first: list[list[str]], then: list[list[str]]) -> list[tuple[int, str, str]]:
    for command in first:
        code, _, told = run(command)
        assert code == 0, told
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    return [run(command) for command in then]


def run(command: list[str]) -> tuple[int, str, str]:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = cli.main(command)
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), *map(json.loads, sys.argv[2:]))))
