"""`groundthink <verb> [flags]`: the table of verbs, and how every kind of failure leaves.

A fault of the input is one line on standard error and exit code 2; a traceback is a fault of ours. Only the
standard library is imported before a verb is chosen, so that `groundthink --help` answers at once.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from groundthink.errors import ConfigError, GroundThinkError

# verb -> (module with `Flags` and `run(flags) -> exit code`, one line of help)
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("groundthink.cli.demo", "train a small hybrid, certify its memory, write the report"),
    "train": ("groundthink.cli.train", "train from a shipped recipe or a YAML file"),
    "resume": ("groundthink.cli.resume", "go on from the newest checkpoint of a run"),
    "certify": ("groundthink.cli.certify", "ask a trained model where its answers come from"),
    "probe": ("groundthink.cli.probe", "ask a trained model one question, or list the questions"),
    "evaluate": ("groundthink.cli.evaluate", "score a trained model on the tasks of its recipe"),
    "generate": ("groundthink.cli.generate", "continue a text"),
    "study": ("groundthink.cli.study", "regenerate one table beside the source's figures, or list the tables"),
    "report": ("groundthink.cli.report", "write the HTML report of a run folder"),
    "bench": ("groundthink.cli.bench", "time the memory operator here, or compile its kernels ahead"),
    "doctor": ("groundthink.cli.doctor", "look at this machine, its libraries and its backends"),
    "config": ("groundthink.cli.config", "list, check or print recipes, fully resolved"),
}
INTERRUPTED = 130  # what shells report for SIGINT

CURES = {
    errno.ENOSPC: "free space on that disk; nothing was overwritten.",
    errno.EDQUOT: "free some of your quota; nothing was overwritten.",
    errno.EFBIG: "write to a place that allows larger files; nothing was overwritten.",
    errno.EROFS: "write to a disk that is not read-only.",
    errno.EACCES: "change the permissions, or name another place.",
    errno.EPERM: "change the permissions, or name another place.",
    errno.ENOENT: "check the path.",
    errno.EISDIR: "name a file, not a folder.",
    errno.ENOTDIR: "check the path: a part of it is a file.",
    errno.EEXIST: "name another place: something is there already.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: words after the program name; those of the process if None.

    Returns:
        The exit code: 0 done, 2 bad input, 130 interrupted, or what the verb says (see `certify`).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except GroundThinkError as error:
        return _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted.", INTERRUPTED)
    except BrokenPipeError:
        # The reader left (`| head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno is None:
            raise
        cure = CURES.get(error.errno, "see what the system says about that path.")
        place = f"{error.filename}: " if error.filename is not None else ""
        return _complain(f"{place}{error.strerror} Fix: {cure}", 2)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        from importlib import metadata

        print(f"groundthink {metadata.version('groundthink')}")
        return 0
    verb, *rest = words
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        guess = f"did you mean {near[0]}?" if near else f"one of {', '.join(VERBS)}."
        raise ConfigError(f"there is no verb {verb!r}.", where="groundthink", fix=guess)
    module = importlib.import_module(VERBS[verb][0])
    from groundthink.cli.flags import parse

    flags = parse(module.Flags, rest, f"groundthink {verb}")
    return 0 if flags is None else int(module.run(flags))


def usage() -> str:
    """What `groundthink --help` prints."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {line}" for verb, (_, line) in VERBS.items()]
    return "\n".join(
        [
            "usage: groundthink <verb> [flags]",
            "",
            "Build, train and prove hybrid language models with a memory that can be read twice.",
            "",
            *lines,
            "",
            "groundthink <verb> --help names the flags of a verb.",
            "Exit codes: 0 done or certified; 2 bad input; 10 PARTIAL, 11 NOT-PROVEN, 12 REFUTED,",
            "13 TASK-FAIL, 14 INVALID (certify); 15 a line of the table is missed (study); 130 interrupted.",
        ]
    )


def _complain(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(line if line.startswith("groundthink") else f"groundthink: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
