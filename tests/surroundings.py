"""What a process inherits from whoever started it, made the same for every test run and for the processes it starts.

A job in the background, `nohup` and many CI runners pass SIGINT or SIGHUP on as ignored; others bring a umask, a locale
or a home folder that nobody can write to. A test that wants one of these sets it itself.
"""

import locale
import os
import signal
from contextlib import suppress

PYTHON_IGNORES = {signal.SIGPIPE, signal.SIGXFSZ}
"""Python does, by itself; it gives them back to the processes that subprocess starts."""
LOCALE = "C.UTF-8"
_OF_LOCALES = ("LANG", "LANGUAGE", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONCOERCECLOCALE")
_OF_HOMES = ("MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")


def reset(*, home: str) -> None:
    """Default signals, none of them blocked; umask 022; UTF-8; `home` as home folder, in which nothing is set."""
    _reset_signals()
    os.umask(0o022)
    for name in list(os.environ):
        if name in (*_OF_LOCALES, *_OF_HOMES) or name.startswith("LC_"):
            del os.environ[name]
    os.environ.update(LC_ALL=LOCALE, HOME=home)
    with suppress(locale.Error):
        locale.setlocale(locale.LC_ALL, LOCALE)


def _reset_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - PYTHON_IGNORES:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
