"""What the documents may name: commands with their options, settings, recipes, protocols, and the files of the tree."""

import ast
import contextlib
import functools
import importlib
import io
import re
import shlex
import tomllib
from pathlib import Path

import wmjax
from wmjax.analysis.sequential import StoppingRule
from wmjax.core import console
from wmjax.core.options import setting_names
from wmjax.core.settings import dotted
from wmjax.data.formats.base import ConvertSettings
from wmjax.experiment.config import axis_names, load, recipe_names, to_dict
from wmjax.pipeline.record import RecordSettings
from wmjax.rollout.protocol import Protocol, protocol_names
from wmjax.rollout.settings import EvaluateSettings
from wmjax.serving.clients.conventions import Conventions
from wmjax.serving.settings import ServeSettings

ROOT = Path(__file__).parents[2]
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
PLACEHOLDER = re.compile(r"[A-Z]{2,}\d*")
"""What a reader replaces, such as RUN and STORE."""
PATTERNS = ("--section.name VALUE",)
"""Code spans that show a form and name nothing."""
TAKES_SETTINGS = {
    "wmjax.train": "",
    "wmjax.estimate": "",
    "wmjax.firstlight": "",
    "wmjax.pretrain": "",
    "wmjax.probe": "",
    "wmjax.encode": "encoder.",
}
"""Commands that take settings of an experiment, and what the names of these begin with."""
SECTIONS: dict[str, tuple[tuple[str, type], ...]] = {
    "wmjax.record": (("record", RecordSettings),),
    "wmjax.convert": (("convert", ConvertSettings),),
    "wmjax.serve": (("serve", ServeSettings),),
    "wmjax.evaluate": (("protocol", Protocol), ("evaluation", EvaluateSettings), ("foreign", Conventions)),
    "wmjax.compare": (("protocol", Protocol), ("rule", StoppingRule)),
}
"""Commands that take settings of their own, by section."""
HEADS = ("e2_flow", "e2_mse")
"""Recipes whose settings together are all settings."""


@functools.cache
def settings() -> set[str]:
    """Every setting, by dotted name."""
    return {name for recipe in HEADS for name in dotted(to_dict(load(recipe)))}


@functools.cache
def section_settings(module: str) -> set[str]:
    """The settings of a command with its own sections, by dotted name."""
    return {f"{section}.{name}" for section, kind in SECTIONS[module] for name in setting_names(kind)}


@functools.cache
def options(module: str) -> set[str]:
    """The options of a command: what ``--help`` prints, or what the source of a script names."""
    if module == "encoders_export.vjepa":  # without importing torch: both commands share their options
        return options("wmjax.encode")
    if module.startswith("wmjax."):
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            importlib.import_module(module).main(["--help"])
        return set(OPTION.findall(shown.getvalue()))
    strings = (node for node in ast.walk(ast.parse(module_file(module).read_text())) if isinstance(node, ast.Constant))
    return {node.value for node in strings if isinstance(node.value, str) and OPTION.fullmatch(node.value)}


@functools.cache
def every_option() -> set[str]:
    """The options of all commands and scripts."""
    scripts = [
        f"{folder}.{path.stem}"
        for folder in ("encoders_export", "benchmarks", "examples", "tools")
        for path in (ROOT / folder).glob("*.py")
    ]
    return {"--help"}.union(*(options(name) for name in [*(f"wmjax.{name}" for name in console.commands()), *scripts]))


@functools.cache
def message_keys() -> set[str]:
    """Strings of the server's messages, some of which look like paths."""
    trees = (ast.parse(path.read_text()) for path in (ROOT / "wmjax" / "serving").rglob("*.py"))
    strings = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in strings if isinstance(value, str)}


def module_file(module: str) -> Path:
    """The source of a module of the tree.

    Raises:
        AssertionError: there is none.

    """
    path = ROOT / module.replace(".", "/")
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert found.is_file(), f"there is no module {module}"
    return found


def check_dotted(name: str) -> None:
    """Checks ``package.module.name``: the module exists and defines the name at its top, or in a class there."""
    parts = name.split(".")
    while parts and not (ROOT / "/".join(parts)).is_dir() and not (ROOT / "/".join(parts)).with_suffix(".py").is_file():
        parts.pop()
    rest = name.split(".")[len(parts) :]
    if not rest or (parts == ["wmjax"] and rest[0] in wmjax.__all__):
        return
    tree: ast.AST = ast.parse(module_file(".".join(parts)).read_text())
    for wanted in rest:
        found = [node for node in ast.walk(tree) if wanted in defined(node)]
        assert found, f"{name}: {'.'.join(parts)} does not define {wanted}"
        tree = found[0]


def defined(node: ast.AST) -> set[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def check_shell(text: str) -> None:
    """Checks a shell block, command by command.

    Raises:
        AssertionError: names what does not exist.

    """
    for line in text.replace("\\\n", " ").splitlines():
        for command in re.split(r"\s(?:&&|\|\|)\s|;", line):
            words = shlex.split(command, comments=True)
            if words:
                check_command(words)


def check_command(words: list[str]) -> None:
    """Checks the program, the module or script, its options and the values of those that choose a file."""
    while re.match(r"[A-Z_]+=", words[0]):  # a variable of the environment
        words = words[1:]
    program = Path(words[0]).name
    if program == "python" and words[1] == "-m":
        check_arguments(words[2], words[3:])
    elif program == "python":
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
        check_arguments(words[1].removesuffix(".py").replace("/", "."), words[2:])
    elif program == "wmjax":
        check_arguments(f"wmjax.{words[1]}", words[2:])
    elif program == "setup.sh":
        modes = "|".join(re.findall(r"^  ([\w|]+)\) extras=", (ROOT / "setup.sh").read_text(), re.M)).split("|")
        assert words[1] in modes, f"setup.sh has no mode {words[1]}"
    elif program != "pip":
        assert program in tools(), f"{program} is no tool of pyproject.toml"


def tools() -> set[str]:
    """The programs that the development and documentation dependencies bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needs = [*project["project"]["optional-dependencies"]["dev"], *project["dependency-groups"]["docs"]]
    names = {re.split(r"[^\w-]", need)[0] for need in needs}
    return names | ({"mkdocs"} if "mkdocs-material" in names else set())


def check_arguments(module: str, words: list[str]) -> None:
    """Checks the arguments of ``python -m module``."""
    if module == "pytest":
        return
    assert not module.startswith("wmjax.") or module.partition(".")[2] in console.commands(), f"{module} is no command"
    known = options(module)
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            continue
        value = value if equals else words[number + 1] if number + 1 < len(words) else ""
        if "." in name:
            check_setting(module, name)
        else:
            assert name in known, f"python -m {module} has no option {name}"
        check_value(name, value)


def check_setting(module: str, option: str) -> None:
    """Checks ``--section.name`` of a command."""
    if module in SECTIONS:
        assert option[2:] in section_settings(module), f"{module} has no setting {option}"
        return
    taken = module in TAKES_SETTINGS and option[2:].startswith(TAKES_SETTINGS[module])
    assert taken and option[2:] in settings(), f"{module} has no setting {option}"


def check_value(option: str, value: str) -> None:
    """Checks the value of an option that names a file of ``train/`` or ``eval/``."""
    known = {
        "--config": recipe_names,
        "--scale": lambda: axis_names("scales"),
        "--dataset": lambda: axis_names("data"),
        "--protocol": protocol_names,
        "--evaluation.protocol": protocol_names,
    }
    if option in known and not PLACEHOLDER.search(value) and not value.endswith(".toml"):
        assert value in known[option](), f"{option} {value}: no such file"


def check_inline(text: str) -> None:
    """Checks a code span: a command, an option, a setting, a module, or a path of the tree.

    Raises:
        AssertionError: names what does not exist.

    """
    words = text.split()
    if text in PATTERNS or re.match(r"(python -m )?wmjax[ .][A-Z]{2,}", text):
        return
    if re.match(r"(\.venv/bin/)?python (-m |benchmarks/|tools/|examples/)", text):
        with contextlib.suppress(ValueError):
            return check_command(shlex.split(text.replace("...", "")))
    if text.startswith("--") and len(words[0]) > 2:
        name = words[0].partition("=")[0]
        if "." in name:
            known = settings().union(*map(section_settings, SECTIONS))
            forms = {f"--{section}.NAME" for sections in SECTIONS.values() for section, _ in sections}
            assert name[2:] in known or name in forms, f"there is no setting {name}"
        else:
            assert name in every_option(), f"no command has the option {name}"
        check_value(name, words[1] if len(words) > 1 else "RUN")
    elif re.fullmatch(r"(wmjax|encoders_export|tests|benchmarks)(\.\w+)+", text):
        check_dotted(text)
    elif re.fullmatch(r"(model|prompt|data|encoder|optimizer|train|mesh|evaluation)(\.[a-z_]+)+( = .*)?", text):
        name = text.partition(" ")[0]
        assert any(f"{known}.".startswith(f"{name}.") for known in settings()), f"there is no setting {name}"
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", text) and (ROOT / text.split("/")[0]).exists() and "/" in text:
        exists = (ROOT / text).exists() or text in message_keys()
        assert PLACEHOLDER.search(text) or exists, f"there is no {text}"
