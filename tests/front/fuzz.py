"""A fuzzer of the command line: malformed arguments, overrides, files of settings and environment variables.

    python tests/front/fuzz.py --seed 20261126 --cases 1000

Each case runs `main` in a forked child of one process in which everything is imported. Whatever the user wrote, the
exit code is 0, 1, 2 or 130, nothing is a traceback, the store is as it was, and the command ends. Nothing is trained:
runs are plans or rehearsals. `sync --follow` and `status --watch` are left out: they wait on purpose.
"""

import argparse
import copy
import gc
import os
import random
import resource
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from harness.cli.main import main
from harness.config.compose import compose
from harness.config.shipped import CONF, PACKAGE

OWN = ("HARNESS_", "WANDB_", "SLURM_")
"""Variables of this process that no case sees."""
SOURCES = next(path for path in (PACKAGE, PACKAGE.parent) if (path / "data").is_dir()) / "data" / "sources.yaml"
CODES = {0, 1, 2, 130}
CPU_SECONDS = 60
"""What a case may take; it is stopped then, and counts as one that never ends."""
WALL_SECONDS = 600.0
MEMORY_BYTES = 8 << 30
STORE = "the store"
"""Where the cases find a store, beside their own folder."""
KEPT = ("artifacts", "attempts", "sweeps", "specs", "work", "jobs")
"""What no case may change: each is a mistake, a plan, a rehearsal or a question."""


@dataclass(frozen=True)
class Case:
    """What a user typed, and what lay in the folder of configurations `mine`."""

    arguments: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        said = [f"{name}={shlex.quote(text)}" for name, text in self.environment.items()]
        lines = [" ".join([*said, "harness", *map(shlex.quote, self.arguments)])]
        return "\n".join(lines + [f"  mine/{name}: {content!r}" for name, content in self.files.items()])


@dataclass(frozen=True)
class Ending:
    """How a case ended."""

    case: Case
    code: int | None
    output: str
    changed: tuple[str, ...]

    @property
    def wrong(self) -> str:
        """What should not have been; empty if all is well."""
        if self.code is None:
            return "it did not end"
        if self.code not in CODES:
            return f"exit code {self.code}"
        if "Traceback" in self.output or "raised an unexpected error" in self.output:
            return "a traceback"
        if self.code == 2 and not self.output.strip():
            return "not a word about what is wrong"
        return f"the store changed: {', '.join(self.changed)}" if self.changed else ""


# --- what is typed

TEXTS = (
    "", " ", "a", "0", "1", "-1", "1.5", "1e400", "-1e-400", "nan", "inf", "true", "null", "None", "~", "~/x",
    "~nobody/x", "1_000", "0x10", "1" * 5000, "9" * 30, "aaa" * 100, "é", "日本", "\u2028", "\u200b", "\ufeff", "\x7f",
    "1\x7f", "\x1b[31m", "\t", "\n", "a\nb", "\\", "'", '"', "'a", '"a', "a'b", "''", '""', "'1'", "[", "]", "{", "}",
    "[]", "{}", "[[[]]]", "[1", "{a:", "{a:1}", "{a: {b: [1, 2]}}", "[1,2]", "[a,b]", "a,b", "1,2", ",", "a,", ",a",
    "1,", "a=b", "=", "==", "a:b", ":", "@", "a@b", "/", "//", "..", "../x", "/dev/null", "/dev/null/x", "a/b", "%",
    "%s", "%(x)s", "*", "?", "#", "!", "&", "$", "$a", "${", "${}", "${a}", "${seed}", "${.seed}", "${..seed}",
    "${...seed}", "${hydra:job.name}", "${hydra.job.name}", "${now:%Y}", "${now:}", "${oc.env:HOME}",
    "${oc.env:NOTHING_OF_THIS_NAME}", "${oc.env:A,${oc.env:B,c}}", "${oc.decode:'{'}", "${oc.decode:'[1'}",
    "${oc.decode:null}", "${oc.create:{a: 1}}", "${oc.select:seed}", "${oc.select:a.b.c,1}", "${oc.dict.keys:align}",
    "${oc.dict.values:align}", "${oc.deprecated:seed}", "${nothing:1}", "${seed", "$${seed}", "\\${seed}", "${a.${b}}",
    "range(0)", "range(3)", "range(0,5,0)", "range(5,0)", "range(0,1,0.3)", "range(0,1,1e-12)", "range(0,10**9)",
    "range(0,1000000000)", "range(a)", "range()", "range(nan)", "range(inf)", "range(0,inf)", "shuffle(range(3))",
    "shuffle(range(0,1000000000))", "sort(3,1)", "sort(a,1)", "sort([2,1])", "sort(range(3),reverse=true)",
    "shuffle(a,b)", "shuffle(1)", "choice(1,2)", "choice()", "choice(a)", "interval(0,1)", "interval(1,0)",
    "interval(a,b)", "glob(*)", "glob([a*])", "glob(*,exclude=t*)", "glob(1)", "tag(a,1,2)", "tag(1)", "int(1.5)",
    "int(a)", "float(a)", "str(1)", "bool(a)", "json_str({a:1})", "json_str(a)", "int(range(0,1,0.5))", "cast(1)",
    "extend_list(1)", "extend_list([1])", "nothing(1)", "str([1,{a:b}])", "[" * 60 + "]" * 60, "${oc.decode:" * 20,
    "2020-13-01", "1:60",
    "!!python/object/apply:os.getcwd []", "&a [*a]", "*a", "<<", "? a", "- a", "|", ">", "%YAML 1.1", "---", "...",
    "2020-01-01", os.fsdecode(b"\xff"), os.fsdecode(b"a\xc3"), "a" * 300, "a/" * 200, "a." * 200 + "a",
)  # fmt: skip
ALPHABET = "abz019 ._-+~=,:;/\\@$%&*?!#'\"`()[]{}<>|^\t\n\x7fé\u2028日"
HYDRA = (
    "hydra.mode", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.name",
    "hydra.job.chdir", "hydra.job.id", "hydra.job.num", "hydra.job.env_set.A", "hydra.job.env_copy",
    "hydra.job.config.override_dirname.kv_sep", "hydra.searchpath", "hydra.verbose", "hydra.sweeper",
    "hydra.sweeper.params", "hydra.sweeper.params.seed", "hydra.launcher", "hydra.launcher._target_",
    "hydra.sweeper._target_", "hydra.help.template", "hydra.help.header", "hydra.runtime.choices",
    "hydra.overrides.task", "hydra/sweeper", "hydra/launcher", "hydra/help", "hydra/job_logging", "hydra/hydra_logging",
    "hydra/output", "hydra/env", "hydra", "hydra.nothing", "hydra.defaults",
)  # fmt: skip
FLAGS = (
    "-m", "--multirun", "-r", "--run", "--cfg", "--cfg=job", "--cfg=all", "--cfg=hydra", "--resolve", "--package=align",
    "--package=nothing", "-p", "--info", "--info=all", "--info=defaults", "--info=defaults-tree", "--info=config",
    "--info=plugins", "--info=searchpath", "--info=nothing", "-sc", "--shell-completion", "--config-name=nothing",
    "--config-name", "-cn=", "--config-path=nowhere", "--config-path=/dev/null", "-cp", "--config-dir=nowhere",
    "--config-dir=", "-cd", "--config-dir=/dev/null", "--hydra-help", "--help", "-h", "--version",
    "--experimental-rerun=nothing", "--experimental-rerun", "--json", "--", "-", "--nothing", "-x", "--store=a", "-mr",
    "-rm",
)  # fmt: skip
VARIABLES = ("HARNESS_STORE", "HARNESS_DATA", "HARNESS_SOURCES", "COLUMNS", "HOME", "TERM", "WANDB_MODE")
VERBS = ("report", "status", "logs", "retry", "cancel", "gc", "sync", "stage", "doctor", "help", "plan")
VERB_FLAGS = (
    "--store", "--format", "--out", "--baseline", "--strict", "--with-samples", "--to", "--json", "--older-than",
    "--dry-run", "--project", "--entity", "--artifacts", "--samples", "--target", "--fetch", "--help", "--nothing",
    "-x", "--",
)  # fmt: skip
SHAPES = (
    b"", b"\n", b"null\n", b"1\n", b"a\n", b"- a\n- b\n", b"[]\n", b"[1, 2\n", b"{}\n", b"{a: 1\n", b"a: b: c\n",
    b"\ta: 1\n", b"a:\n\t- 1\n", b"a: 1\na: 2\n", b"1: 2\n", b"null: 1\n", b"true: 1\n", b"[a]: 1\n",
    b"? {a: 1}\n: 2\n", b"a: &x [*x]\n", b"a: *x\n", b"<<: a\n", b"<<: {a: 1}\n", b"defaults: 1\n", b"defaults: a\n",
    b"defaults: [a]\n", b"defaults: [[a]]\n", b"defaults: [{a: 1}]\n", b"defaults: [{a: [b]}]\n",
    b"defaults: [{a: {b: c}}]\n", b"defaults: [_self_, _self_]\n", b"defaults: [null]\n", b"defaults: [1]\n",
    b"defaults: {a: b}\n", b"defaults: [override a: b]\n", b"defaults: [{override align: tiny}]\n",
    b"defaults: [{optional a: b}]\n", b"defaults: ['${a}']\n", b"defaults: [{a: '${b}'}]\n",
    b"defaults: [{'a@b.c': d}]\n", b"defaults: [{/align: tiny}]\n", b"defaults: [tiny]\n", b"defaults: ['']\n",
    b"# @package\na: 1\n", b"# @package _global_\na: 1\n", b"# @package _group_\na: 1\n", b"# @package a.b.c\nd: 1\n",
    b"# @package ${a}\nb: 1\n", b"# @package _global_\nseed: ${seed}\n", b"# @package _global_\nhydra: 1\n",
    b"# @package _global_\nhydra: {sweeper: {params: 1}}\n",
    b"# @package _global_\nhydra: {sweeper: {params: {seed: 1}}}\n",
    b"# @package _global_\nhydra: {sweeper: {params: {seed: range(0)}}}\n",
    b"# @package _global_\nhydra: {sweeper: {params: {seed: '1,2', '': a}}}\n",
    b"# @package _global_\nhydra: {nothing: 1}\n", b"# @package _global_\ntargets: a\n",
    b"# @package _global_\ntargets: [os.]\n", b"# @package _global_\ncluster: null\n",
    b"# @package _global_\nstore: null\n", b"# @package _global_\nstore: [a]\n", b"# @package _global_\nmodel: null\n",
    b"# @package _global_\ntuned: 1\n", b"# @package _global_\nevaluation: []\n",
    b"# @package _global_\ndefense: null\n", b"# @package _global_\ndefense: {align: 1}\n",
    b"# @package _global_\ndefense: {align: {}}\n", b"# @package _global_\ndefense: {align: {_target_: os.getcwd}}\n",
    b"# @package _global_\ndefense: []\n", b"# @package _global_\n1: 2\n", b"_target_: os.getcwd\n", b"_target_: 1\n",
    b"_target_: harness\n", b"_target_: harness.nothing.Nothing\n", b"_target_: ''\n", b"_target_: '...'\n",
    b"# Verst\xe4ndnis\na: 1\n", b"a: \xff\xfe\n", b"\xff\xfea\x00:\x00 \x001\x00", b"\xef\xbb\xbfa: 1\n", b"a: \x00\n",
    b"a: '\x07'\n", b"a: \x7f\n", b"a: \xed\xa0\xbd\n", b"a: !!python/object/apply:os.getcwd []\n", b"a: !x 1\n",
    b"a: !!binary aGk=\n", b"a: !!set {b}\n", b"a: !!int a\n", b"a: !!float a\n", b"a: 2020-01-01\n",
    b"a: 2020-13-01\n", b"a: 1e999\n", b"a: .nan\n", b"a: 0o9\n", b"a: 1:60\n", b"a: " + b"9" * 5000 + b"\n",
    b"a: " + b"[" * 2000 + b"\n", b"a: |\n  b\n c\n", b"---\na: 1\n---\nb: 2\n", b"%YAML 9.9\n---\na: 1\n",
    b"a: ${b}\nb: ${a}\n", b"a: ${\n", b"a: '${oc.env:X'\n", b"a: ${oc.decode:'{'}\n", b"a: ???\n",
    b"a" * 70000 + b": 1\n", b"a: >\n", b"'a\n", b"\"\\x\": 1\n", b"a: \"\\ud800\"\n", b"a: 'b\n", b"@a: 1\n",
    b"`a: 1\n", b"a: %b\n",
)  # fmt: skip


class Typist:
    """Types like somebody who makes mistakes.

    Args:
        chance: whose.
        sweep: the id of a sweep of the store.
        keys: of stages of the store.
    """

    def __init__(self, chance: random.Random, *, sweep: str, keys: list[str]) -> None:
        self._chance = chance
        self._named = (sweep, sweep[:5], *keys[:3], keys[0][:4])
        self._shipped = sorted(path for path in CONF.rglob("*.yaml") if path.parent.name not in {"sweeps", "cluster"})
        (first,) = compose([])
        self._settings = sorted(_dotted(first.data))
        self._groups = sorted({str(path.parent.relative_to(CONF)) for path in self._shipped} - {"."})
        self._options = sorted({path.stem for path in self._shipped})

    def case(self) -> Case:
        """Return the next case."""
        kinds = (self._run, self._run_with_files, self._run_with_sources, self._verb, self._raw)
        (kind,) = self._chance.choices(kinds, weights=(50, 20, 5, 20, 10))
        return kind()

    def _run(self) -> Case:
        flags, variables = [self._flag() for _ in range(self._some(0.3))], self._variables()
        # A line in which nothing is unusual takes longest and finds nothing.
        first = self._override() if flags or variables else self._wrong_override()
        line = [*flags, first, *(self._override() for _ in range(self._some(0.4)))]
        # Overrides that do not stand together are refused by argparse already.
        if self._chance.random() < 0.1:
            self._chance.shuffle(line)
        return Case(self._harmless(line), environment=variables)

    def _run_with_files(self) -> Case:
        if self._chance.random() < 0.5:
            path = self._chance.choice(self._shipped)
            name, content = str(path.relative_to(CONF)), self._damaged(path.read_bytes())
        else:
            name = f"{self._chance.choice(self._groups)}/mine.yaml"
            content = self._shape()
        group, _, option = name.removesuffix(".yaml").rpartition("/")
        line = [f"{group}={option}"] if group else []
        if group == "experiment" or self._chance.random() < 0.2:
            line = [f"+{group}={option}"] if group else []
        line += [self._override() for _ in range(self._some(0.3))]
        if self._chance.random() < 0.3:
            line.append("-m")
        return Case(self._harmless(["--config-dir=mine", *line]), {name: content}, self._variables())

    def _run_with_sources(self) -> Case:
        content = self._damaged(SOURCES.read_bytes()) if self._chance.random() < 0.5 else self._shape()
        name = self._chance.choice(("HARNESS_SOURCES", "HARNESS_DATA"))
        path = "mine/sources.yaml" if name == "HARNESS_SOURCES" else "mine"
        return Case(("plan", "corpus=beavertails", "task=sst2"), {"sources.yaml": content}, {name: path})

    def _verb(self) -> Case:
        verb = self._chance.choice(VERBS)
        line = [self._word() for _ in range(self._some(0.5))]
        if verb == "retry":
            line += [f"{self._chance.choice(('cluster', 'tracker'))}.{self._word()}={self._text()}"]
            line += ["cluster.dry_run=true"]
        # A doctor without a task looks at torch, which takes a child seconds to import.
        if verb == "doctor":
            line += [self._chance.choice(("--fetch", "--nothing")), f"a{self._text()}"]
        # What has no job would be run here and now; what is stored stays as it is.
        if verb == "stage":
            line += ["a key that nothing has"]
        # The cancelled sweep is marked; a name that is none is a mistake.
        if verb == "cancel":
            line += ["no sweep"]
        return Case((verb, *line), environment=self._variables())

    def _raw(self) -> Case:
        """Return words that may be anything."""
        line = [self._text() for _ in range(1 + self._some(0.4))]
        return Case(self._harmless(line), environment=self._variables())

    def _harmless(self, line: list[str]) -> tuple[str, ...]:
        """Make a line a plan or a rehearsal: the last of two overrides counts."""
        if self._chance.random() < 0.7:
            return ("plan", *line)
        return (*line, "cluster=slurm", "cluster.dry_run=true")

    def _flag(self) -> str:
        return self._chance.choice(FLAGS)

    def _override(self) -> str:
        return self._right_override() if self._chance.random() < 0.35 else self._wrong_override()

    def _wrong_override(self) -> str:
        """Return one that is wrong unless by chance it is not."""
        sign = self._chance.choice(("", "", "", "", "", "+", "++", "~", "~~", "+~"))
        key = self._key()
        if sign.startswith("~") and self._chance.random() < 0.5:
            return f"{sign}{key}"
        return f"{sign}{key}={self._text()}"

    def _right_override(self) -> str:
        """Return one without a mistake, so that others are met later on the way."""
        if self._chance.random() < 0.5:
            path = self._chance.choice(self._shipped)
            group = str(path.parent.relative_to(CONF))
            return f"{group}={path.stem}" if group not in (".", "experiment") else "seed=1"
        return self._chance.choice(("seed=0", "seed=1,2", "align.rows=20", "attack.ratio=0.2", "defense.align=null"))

    def _key(self) -> str:
        kind = self._chance.random()
        if kind < 0.45:
            key = self._chance.choice(self._settings)
            return self._garbled(key) if self._chance.random() < 0.15 else key
        if kind < 0.75:
            key = self._chance.choice(self._groups)
            if self._chance.random() < 0.15:
                key += f"@{self._chance.choice(('a', 'align', '_global_', '_group_', 'a.b', '', 'x:y'))}"
            return self._garbled(key) if self._chance.random() < 0.1 else key
        return self._chance.choice(HYDRA) if kind < 0.9 else self._text()

    def _text(self) -> str:
        kind = self._chance.random()
        if kind < 0.6:
            return self._chance.choice(TEXTS)
        if kind < 0.75:
            return self._chance.choice(self._options)
        if kind < 0.85:
            return ",".join(self._text() for _ in range(2))
        if kind < 0.95:
            return self._garbled(self._chance.choice(TEXTS)[:200])
        return "".join(self._chance.choices(ALPHABET, k=self._chance.randrange(1, 12)))

    def _word(self) -> str:
        kind = self._chance.random()
        if kind < 0.3:
            flag = self._chance.choice(VERB_FLAGS)
            return f"{flag}={self._text()}" if self._chance.random() < 0.5 else flag
        return self._chance.choice(self._named) if kind < 0.6 else self._text()

    def _garbled(self, text: str) -> str:
        place = self._chance.randrange(len(text) + 1)
        cut = self._chance.choice((0, 0, 1, 2))
        return text[:place] + self._chance.choice((*ALPHABET, "")) + text[place + cut :]

    def _damaged(self, content: bytes) -> bytes:
        """Return a file of settings with an accident: bytes, a line, or a value."""
        for _ in range(1 + self._some(0.3)):
            lines = content.splitlines(keepends=True) or [b"\n"]
            place = self._chance.randrange(len(lines))
            match self._chance.randrange(5):
                case 0:
                    at = self._chance.randrange(len(content) + 1)
                    added = self._chance.choice((b"\xe4", b"\x00", b"\t", b":", b"[", b"'", b"${"))
                    content = content[:at] + added + content[at:]
                case 1:
                    content = b"".join(lines[:place] + lines[place + 1 :])
                case 2:
                    shifted = self._chance.choice((b" ", b"  ", b"- ")) + lines[place]
                    content = b"".join([*lines[:place], shifted, *lines[place + 1 :]])
                case 3:
                    name = lines[place].partition(b":")[0]
                    value = self._text().encode("utf-8", "surrogateescape")
                    content = b"".join([*lines[:place], name + b": " + value + b"\n", *lines[place + 1 :]])
                case _:
                    content = content[: self._chance.randrange(len(content) + 1)]
        return content

    def _shape(self) -> bytes:
        return self._chance.choice(SHAPES) + (self._chance.choice(SHAPES) if self._chance.random() < 0.2 else b"")

    def _variables(self) -> dict[str, str]:
        if self._chance.random() < 0.9:
            return {}
        return {self._chance.choice(VARIABLES): self._chance.choice(TEXTS)}

    def _some(self, share: float) -> int:
        """Return how many more: none mostly."""
        count = 0
        while count < 4 and self._chance.random() < share:
            count += 1
        return count


def _dotted(data: Mapping[str, object], above: str = "") -> Iterator[str]:
    for name, value in data.items():
        yield f"{above}{name}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{above}{name}.")


# --- what becomes of it


class Bench:
    """Runs cases on a store.

    Args:
        folder: an empty one.
        furnish: makes a sweep in the store of this folder; returns its id and the keys of its stages.
    """

    def __init__(self, folder: Path, furnish: Callable[[Path], tuple[str, list[str]]]) -> None:
        self._folder = folder
        self._output = folder / "output"
        self.sweep, self.keys = furnish(folder / STORE)
        self._environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith(OWN)},
            "HARNESS_STORE": str(folder / STORE),
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "case"),
            "PATH": "/usr/bin:/bin",
            "HF_HUB_OFFLINE": "1",
            "WANDB_BASE_URL": "http://127.0.0.1:9",
        }
        self._warm()
        self._load = OmegaConf.load
        self._shipped = {str(path): self._load(path) for path in CONF.rglob("*.yaml")}
        # A child that collects garbage would copy what it shares with this process.
        gc.collect()
        gc.freeze()

    def _warm(self) -> None:
        """Import what the cases need, once for all."""
        for line in ("plan -m seed=0,1", "cluster=slurm cluster.dry_run=true", "report", "status"):
            code = self._run(Case(tuple(line.split())), here=True)
            assert code == 0, self._output.read_text()

    def run(self, case: Case) -> Ending:
        """Run a case in a child."""
        before = self._standing()
        code = self._run(case, here=False)
        output = self._output.read_bytes().decode("utf-8", "replace")
        after = self._standing()
        changed = tuple(sorted(name for name, _ in before ^ after))
        return Ending(case, code, output, changed)

    def _run(self, case: Case, *, here: bool) -> int | None:
        place = self._folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        for folder in (place, self._folder / "home"):
            folder.mkdir(exist_ok=True)
        for name, content in case.files.items():
            path = place / "mine" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if here:
            return self._in_this_process(case, place)
        sys.stdout.flush()
        sys.stderr.flush()
        if (child := os.fork()) == 0:
            gc.disable()
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            self._child(case, place)
        return _ended(child)

    def _child(self, case: Case, place: Path) -> None:
        """Be the command, as far as a process that is forked can be."""
        code = 1
        try:
            output = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8")
            sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
            os.chdir(place)
            os.environ.clear()
            os.environ.update(self._environment | dict(case.environment))
            tempfile.tempdir = None
            sys.argv = ["harness", *case.arguments]
            OmegaConf.load = self._loaded
            try:
                main(case.arguments)
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def _loaded(self, file: Any) -> Any:
        """Load YAML as OmegaConf does; reading the shipped files, which no case changes, took a third of the time."""
        shipped = self._shipped.get(str(getattr(file, "name", file)))
        return copy.deepcopy(shipped) if shipped is not None else self._load(file)

    def _in_this_process(self, case: Case, place: Path) -> int | None:
        before, environment, argv, streams = os.getcwd(), dict(os.environ), sys.argv, (sys.stdout, sys.stderr)
        try:
            os.chdir(place)
            os.environ.update(self._environment)
            with self._output.open("w", encoding="utf-8") as sys.stdout:
                sys.stderr = sys.stdout
                main(case.arguments)
        except SystemExit as left:
            return left.code if isinstance(left.code, int) else None
        finally:
            sys.stdout, sys.stderr = streams
            sys.argv = argv
            os.chdir(before)
            os.environ.clear()
            os.environ.update(environment)
        return None

    def _standing(self) -> set[tuple[str, int]]:
        found = set()
        for name in KEPT:
            for above, _, files in os.walk(self._folder / STORE / name):
                for file in files:
                    path = os.path.join(above, file)
                    found.add((os.path.relpath(path, self._folder), os.stat(path).st_mtime_ns))
        return found


def _ended(child: int) -> int | None:
    """Wait for a child; None if it had to be stopped."""
    until = time.monotonic() + WALL_SECONDS
    pause = 0.001
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def endings(bench: Bench, *, seed: int, cases: int) -> Iterator[Ending]:
    """Run the cases of a seed."""
    typist = Typist(random.Random(seed), sweep=bench.sweep, keys=bench.keys)
    for _ in range(cases):
        yield bench.run(typist.case())


def furnished(root: Path) -> tuple[str, list[str]]:
    """Make a store with a sweep of which some stages are finished."""
    # Outside of pytest, only the folder of this file is on the path.
    sys.path.append(str(Path(__file__).parents[1]))
    from recorded import record

    recorded = record(root, "cluster=slurm")
    recorded.finish(*recorded.stages("base"), *recorded.stages("align"))
    return recorded.sweep, [stage.key for stage in recorded.plan.stages]


def _by_hand() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=20261126)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--show", action="store_true", help="print every case and what it said")
    chosen = parser.parse_args()
    codes: Counter[int | None] = Counter()
    wrong = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        bench = Bench(Path(folder), furnished)
        for number, ending in enumerate(endings(bench, seed=chosen.seed, cases=chosen.cases), start=1):
            codes[ending.code] += 1
            wrong += bool(ending.wrong)
            if ending.wrong or chosen.show:
                text = f"--- {ending.wrong or ending.code}\n{ending.case}\n{ending.output[-3000:]}\n"
                sys.stdout.write(text.encode("ascii", "backslashreplace").decode())
                sys.stdout.flush()
            if number % 100 == 0:
                sys.stderr.write(f"{number} cases, {wrong} wrong, {time.monotonic() - began:.0f} s\n")
    used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    counted = ", ".join(f"{count} x {code}" for code, count in sorted(codes.items(), key=str))
    sys.stdout.write(
        f"seed {chosen.seed}: {chosen.cases} cases, {wrong} wrong; codes {counted}; "
        f"{time.monotonic() - began:.0f} s, {used:.0f} s of CPU\n"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
    sys.exit(_by_hand())
