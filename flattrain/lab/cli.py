"""The command line: what each call means, and one line with exit code 2 for what cannot be done."""

from __future__ import annotations

from pathlib import Path

from flattrain.lab.together import as_one, complain, follow, following, launched, led
from flattrain.ranges import Refused, suggest

USAGE = """\
flattrain: does flatness lead to generalisation? Recipes run the trial and give a verdict.

  python -m flattrain list                           the recipes: paper, question, expected time
  python -m flattrain recipe=NAME                    run one; prints verdicts, writes report.html
  python -m flattrain recipe=NAME dry_run=true       what would run, and how long it would take
  python -m flattrain recipe=NAME KEY=VALUE ...      change it: seeds=20 train.lr=0.02 preset=full
  python -m flattrain -m recipe=A,B KEY=V,W ...      one run for each combination of values
  python -m flattrain report RUN_DIR                 verdicts and report again, from the table alone
  python -m flattrain page RUN_DIR FOLDER            its page for documentation, with figures and table
  python -m flattrain compare RUN_DIR RUN_DIR ...    runs side by side; out=FILE.html (.md, .json) keeps it

  recipe=NAME   a path to a .yaml, or a name from ./recipes or the package
  out=FOLDER    where results go (default runs/NAME-HASH); the same command resumes there
  jobs=N        processes (default: one per core)
  execute=ray   run on a Ray cluster, {ray: {address: HOST:PORT}}, or on workers of this machine
  device=auto   a GPU where there is one (default cpu); torchrun shares one model among processes
  tracking=wandb   log to Weights & Biases: online when logged in, offline otherwise
  data.root=FOLDER   where data sets lie (default $FLATTRAIN_DATA, else a download)

Start with:  python -m flattrain recipe=quickstart
"""
VERBS = ("list", "report", "page", "compare", "help")


def run(words: list[str]) -> int:
    """Run one command; the exit code."""
    if launched():
        return as_one(lambda: run_alone(words))
    return run_alone(words)


def run_alone(words: list[str]) -> int:
    """The command in this process; what cannot be done is one line."""
    try:
        return _run(words)
    except Refused as refused:
        complain(" ".join(str(refused).split()))
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return 141
        place = f"{error.filename}: " if error.filename else ""
        complain(f"{place}{error.strerror or error}; nothing finished is lost")
        return 2
    except KeyboardInterrupt:
        complain("stopped; the same command resumes where it was")
        return 130


def _run(words: list[str]) -> int:
    if not words or words[0] in ("help", "--help", "-h"):
        print(USAGE, end="")
        return 0
    if words == ["--version"]:
        from flattrain import __version__

        print(f"flattrain {__version__}")
        return 0
    if following() and "=" not in words[0]:
        return 0
    if words[0] == "list":
        return _list(words[1:])
    if words[0] == "report":
        return _report(words[1:])
    if words[0] in ("-m", "--multirun"):
        if launched():
            raise Refused("-m: torchrun runs one recipe; leave out -m, or sweep without torchrun")
        from flattrain.lab.sweep import sweep

        return sweep(words[1:])
    if words[0] == "page":
        from flattrain.lab.page import page_command

        return page_command(words[1:])
    if words[0] == "compare":
        from flattrain.lab.compare_page import compare_command

        return compare_command(words[1:])
    if "=" not in words[0] and not words[0].startswith("-"):
        raise Refused(f"unknown command {words[0]!r}{suggest(words[0], VERBS)}")
    from flattrain.lab.compose import composed
    from flattrain.lab.study import dry_run, study

    if following():
        return follow()
    recipe = composed(words)
    command = " ".join(["python -m flattrain", *words])

    def work() -> int:
        return dry_run(recipe) if recipe.raw["dry_run"] else study(recipe, command)

    return led(work) if launched() else work()


def _list(rest: list[str]) -> int:
    if rest:
        raise Refused(f"list takes no arguments, got {' '.join(rest)}")
    from flattrain.lab import library

    for name, path in library.available().items():
        raw = library.load(path)
        minutes = raw.get("minutes") or 0
        time = f"about {minutes:g} min" if minutes else "time not stated"
        print(f"{name}\n    {raw.get('title', '')}\n    {raw.get('paper', '')} · {time}")
    return 0


def _report(rest: list[str]) -> int:
    if len(rest) != 1:
        raise Refused("report takes one run folder: python -m flattrain report RUN_DIR")
    from flattrain.lab.study import report_again

    return report_again(Path(rest[0]))
