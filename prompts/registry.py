"""Prompt variants: one ``.j2`` file each, loaded and checked as a whole, rendered in a sandbox.

A file has three parts: YAML between two lines of ``---`` that says what the variant is, the system message, and after
a line ``--- user`` the user message. Both are Jinja2; they may use the variables that are declared, and nothing else of
the process. What fills a variable is data: it is printed, never read as a template, so it can't leave its place.

Nothing is sent anywhere from here, and no version is chosen. A new variant is a new file, which changes no caller;
prompts/catalog.py finds it while the process runs.
"""

import difflib
import hashlib
import re
import stat
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import attrs
import jinja2
import jinja2.meta
import jinja2.nodes
import msgspec
import yaml

from models.codec import between, describe_error, filled
from models.errors import DeclarationError, PromptError
from prompts.sandbox import limited, sandbox

SHIPPED = Path(__file__).parent / "templates"
FENCE = "---"
USER_MARK = "--- user"
MIN_CHARS = 20
MAX_BYTES = 65_536
"""Of a file; compiling a longer one would hold up everything else."""
PROMPT_CHARS = 50_000
"""What both messages together may have with a sample."""
SAMPLE_CPU_S = 0.1
"""What a sample may take of the processor while each line is looked at."""

Samples = Mapping[str, Mapping[str, object]]
"""What fills the variables, by the name of the sample; each sample has the same variables."""

VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_WORDS = frozenset({"and", "else", "false", "if", "in", "is", "loop", "none", "not", "or", "self", "true"})
_FAILURES = (
    *(jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError),
    *(RuntimeError, MemoryError),  # of macros that call each other without an end, and of texts that are too long
)
"""What a template that doesn't fit its values can raise."""
_OTHER_FILES = (jinja2.nodes.Include, jinja2.nodes.Import, jinja2.nodes.FromImport, jinja2.nodes.Extends)


@attrs.frozen(kw_only=True)
class Hints:
    """What a model is asked with; None leaves it to the gateway. ``max_tokens`` counts those of the answer."""

    temperature: float | None = attrs.field(default=None, validator=between(0, 2))
    max_tokens: int | None = attrs.field(default=None, validator=between(1, 100_000))


@attrs.frozen(kw_only=True)
class Limits:
    """What an answer may be: longer ones are not shown. Characters are those of Unicode; None is no limit.

    ``max_chars`` leaves room for a tip that is made without a model (prompts/local.py).
    """

    max_chars: int = attrs.field(validator=between(MIN_CHARS, 100_000))
    max_lines: int | None = attrs.field(default=None, validator=between(1, 1000))


@attrs.frozen(kw_only=True)
class Messages:
    """What a model is sent."""

    system: str
    user: str


@attrs.frozen(kw_only=True)
class Variant:
    """One version of the prompt.

    Args:
        variables: what each variable means, by its name.
        limits: what an answer to it may be; prompts/checks.py holds it to them.
        content_hash: twelve hexadecimal digits of the SHA-256 of the file.
    """

    version: str
    purpose: str
    variables: Mapping[str, str]
    hints: Hints
    limits: Limits
    content_hash: str
    file: Path
    _system: jinja2.Template = attrs.field(repr=False, eq=False)
    _user: jinja2.Template = attrs.field(repr=False, eq=False)

    def render(self, context: Mapping[str, object]) -> Messages:
        """Fills in the variables; more than the declared ones may be given and are ignored.

        Raises:
            PromptError: a variable is missing, or its value is not of the kind that the template needs.
        """
        missing = [name for name in self.variables if name not in context]
        if missing:
            raise PromptError(self.version, f"variable {missing[0]!r}: missing")
        given = {name: context[name] for name in self.variables}
        return Messages(system=self._fill(self._system, given), user=self._fill(self._user, given))

    def _fill(self, template: jinja2.Template, given: Mapping[str, object]) -> str:
        try:
            text = template.render(given).strip()
            text.encode()  # a lone surrogate can't be sent
            return text
        except _FAILURES as error:
            line = _failed_line(error, self.file)
            where = f"{self.file.name}:{line}: " if line else ""
            raise PromptError(self.version, f"{where}{error}") from error


def _failed_line(error: BaseException | None, file: Path) -> int | None:
    """The innermost line of a file that an error went through."""
    frames = traceback.extract_tb(error.__traceback__) if error else []
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    return lines[-1] if lines else None


def load_variants(folders: Sequence[Path], *, samples: Samples | None = None) -> Mapping[str, Variant]:
    """Loads every ``.j2`` file of some folders, by version, in the order of the folders and then of the names.

    Args:
        samples: as ``load_variant`` takes them.

    Raises:
        DeclarationError: a folder or a file can't be used; names the file, and the key or the line.
    """
    found: dict[str, Variant] = {}
    for folder in folders:
        for file in variant_files(folder):
            variant = load_variant(file, samples=samples)
            if other := found.get(variant.version):
                _refuse(file, f"version: {variant.version!r} is that of {other.file} already")
            found[variant.version] = variant
    return found


def variant_files(folder: Path) -> list[Path]:
    """The files of a folder that are variants, by name; hidden ones are those of editors.

    Raises:
        DeclarationError: there is no such folder, or it can't be read.
    """
    try:
        return sorted(file for file in folder.iterdir() if file.suffix == ".j2" and not file.name.startswith("."))
    except OSError as error:
        raise DeclarationError(f"prompts {folder}", f"expected a folder with .j2 files ({error.strerror})") from error


def load_variant(file: Path, *, samples: Samples | None = None) -> Variant:
    """Loads one file.

    Args:
        samples: what there will be for the variables: no others may be used, and each sample must be printed. None
            takes any variables and tries nothing out.

    Raises:
        DeclarationError: it can't be used; names the file, and the key or the line.
    """
    content = _content(file)
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        _refuse(file, "expected UTF-8")
    try:
        return _variant(file, text, hashlib.sha256(content).hexdigest()[:12], samples)
    except (RecursionError, SyntaxError):  # of the YAML, of the template, or of the code that Jinja2 makes of it
        _refuse(file, "nested too deeply")


def _content(file: Path) -> bytes:
    """The bytes of a file; reading a pipe or a device might never end."""
    try:
        found = file.stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            _refuse(file, "can't be read (no file with a content)")
        if found.st_size > MAX_BYTES:
            _refuse(file, f"expected at most {MAX_BYTES} bytes, got {found.st_size}")
        return file.read_bytes()
    except OSError as error:
        _refuse(file, f"can't be read ({error.strerror})")


def _variant(file: Path, text: str, content_hash: str, samples: Samples | None) -> Variant:
    front, system, user = _parts(file, text)
    facts = _facts(file, front, None if samples is None else next(iter(samples.values())))
    _check_facts(file, facts)
    variant = Variant(
        version=facts.version,
        purpose=facts.purpose,
        variables=facts.variables,
        hints=facts.hints,
        limits=facts.limits,
        content_hash=content_hash,
        file=file,
        system=_compiled(file, system, facts.variables),
        user=_compiled(file, user, facts.variables),
    )
    for name, sample in (samples or {}).items():
        _try_out(variant, name, sample, text)
    return variant


def _try_out(variant: Variant, name: str, sample: Mapping[str, object], text: str) -> None:
    """Refuses a variant that a sample is too much for, before a request can be."""
    try:
        with limited(str(variant.file), cpu_s=SAMPLE_CPU_S):
            messages = variant.render(sample)
    except PromptError as error:
        line = _failed_line(error.__cause__, variant.file)
        source = "".join(text.split("\n")[line - 1 : line]) if line else ""
        names = " or ".join(repr(one) for one in variant.variables if re.search(rf"\b{one}\b", source))
        why = str(error.__cause__) or type(error.__cause__).__name__  # of a MemoryError, which says nothing more
        _refuse(variant.file, f"variable {names}: " * bool(names) + f"{why}, with the sample {name!r}", line=line)
    chars = len(messages.system) + len(messages.user)
    if chars > PROMPT_CHARS:
        problem = f"expected messages of at most {PROMPT_CHARS} characters, got {chars}"
        _refuse(variant.file, f"{problem}, with the sample {name!r}")


@attrs.frozen(kw_only=True)
class _Facts:
    """The front matter."""

    version: str
    purpose: str = attrs.field(validator=filled)
    variables: dict[str, str]
    limits: Limits
    hints: Hints = attrs.field(factory=Hints)


def _refuse(file: Path, problem: str, *, line: int | None = None) -> NoReturn:
    raise DeclarationError(f"prompt {file}" + (f":{line}" if line else ""), problem)


def _parts(file: Path, text: str) -> tuple[str, str, str]:
    """Front matter, system and user message; blank lines stand before each, so that line numbers are the file's."""
    lines = [line.rstrip() for line in text.split("\n")]
    if lines[0] != FENCE:
        _refuse(file, f"expected a line {FENCE!r}, and YAML up to a second one", line=1)
    if FENCE not in lines[1:]:
        _refuse(file, f"the YAML has no end: expected a second line {FENCE!r}", line=1)
    end = lines.index(FENCE, 1)
    marks = [number for number, line in enumerate(lines) if line == USER_MARK and number > end]
    if len(marks) != 1:
        problem = f"expected one line {USER_MARK!r} between the two messages, got {len(marks) or 'none'}"
        _refuse(file, problem, line=marks[-1] + 1 if marks else None)
    raw = text.split("\n")
    spans = {"YAML": (1, end), "system message": (end + 1, marks[0]), "user message": (marks[0] + 1, len(raw))}
    parts = {name: "\n" * start + "\n".join(raw[start:stop]) for name, (start, stop) in spans.items()}
    for name, part in parts.items():
        if not part.strip():
            _refuse(file, f"the {name} is empty", line=spans[name][0] + 1)
    front, system, user = parts.values()
    return front, system, user


def _facts(file: Path, front: str, allowed: Collection[str] | None) -> _Facts:
    """Reads the front matter; each problem is told with the line of its key."""
    try:
        node = yaml.compose(front, yaml.SafeLoader)
        data = yaml.safe_load(front)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _refuse(file, f"not valid YAML ({error.problem})", line=mark.line + 1 if mark else None)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # a value that can't be of its tag
        _refuse(file, f"not valid YAML ({' '.join(str(error).split())})")
    if not isinstance(data, dict):
        _refuse(file, f"expected keys and values, got {data!r}", line=2)
    lines = dict(_key_lines(file, node))
    for problem, key in _unknown_keys(data, allowed):
        _refuse(file, problem, line=lines.get(key))
    try:
        return msgspec.convert(data, _Facts)
    except msgspec.ValidationError as error:
        problem = describe_error(error)
        _refuse(file, problem, line=_nearest(lines, problem.partition(":")[0]))


def _key_lines(file: Path, node: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """The line of each key, also of those inside of others, by its path; one that comes twice is refused."""
    seen = set()
    for key, value in node.value:
        name, line = f"{path}{key.value}", key.start_mark.line + 1
        if name in seen:
            _refuse(file, f"{name}: the key comes twice", line=line)
        seen.add(name)
        yield name, line
        if isinstance(value, yaml.MappingNode):
            yield from _key_lines(file, value, f"{name}.")


def _nearest(lines: Mapping[str, int], path: str) -> int | None:
    """The line of a key, or of the one that it is missing in."""
    while path not in lines and path:
        path = path.rpartition(".")[0]
    return lines.get(path)


def _unknown_keys(data: Mapping[Any, Any], allowed: Collection[str] | None) -> Iterator[tuple[str, str]]:
    """What is wrong with a key, and its path."""
    parts: list[tuple[str, Any, Sequence[str]]] = [("", data, _names(_Facts))]
    parts += [("hints.", data.get("hints"), _names(Hints)), ("limits.", data.get("limits"), _names(Limits))]
    if allowed is not None:
        parts.append(("variables.", data.get("variables"), list(allowed)))
    for path, part, known in parts:
        for key in part if isinstance(part, dict) else ():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
                yield f"{path}{key}: unknown key, {hint}", f"{path}{key}"


def _names(cls: type) -> list[str]:
    return [field.name for field in attrs.fields(cls)]


def _check_facts(file: Path, facts: _Facts) -> None:
    if not VERSION.fullmatch(facts.version):
        _refuse(file, f"version: expected {VERSION.pattern}, got {facts.version!r}")
    for name in facts.variables:
        if not _NAME.fullmatch(name) or name in _WORDS:
            _refuse(file, f"variables: expected {_NAME.pattern} and no word of Jinja2, got {name!r}")


def _compiled(file: Path, source: str, variables: Iterable[str]) -> jinja2.Template:
    """Compiles one message."""
    environment = sandbox()
    try:
        tree = environment.parse(source)
        code = environment.compile(source, filename=str(file))
    except jinja2.TemplateSyntaxError as error:
        _refuse(file, str(error.message), line=error.lineno)
    for node in tree.find_all(_OTHER_FILES):
        _refuse(file, f"a variant is one file: {type(node).__name__.lower()} can't be used", line=node.lineno)
    _check_names(file, tree, environment)
    for name in sorted(jinja2.meta.find_undeclared_variables(tree) - set(variables)):
        lines = [node.lineno for node in tree.find_all(jinja2.nodes.Name) if node.name == name]
        _refuse(file, f"variable {name!r} is used and not declared under variables", line=min(lines, default=None))
    return jinja2.Template.from_code(environment, code, environment.globals)


def _check_names(file: Path, tree: jinja2.nodes.Template, environment: jinja2.Environment) -> None:
    """Refuses unknown filters and tests; inside of a condition Jinja2 would tell them when it is met."""
    for node in tree.find_all((jinja2.nodes.Filter, jinja2.nodes.Test)):
        kind = "filter" if isinstance(node, jinja2.nodes.Filter) else "test"
        if node.name not in (environment.filters if kind == "filter" else environment.tests):
            _refuse(file, f"No {kind} named {node.name!r}.", line=node.lineno)
