"""The sandbox: what a template can't do, and how one that computes for too long is ended."""

import sys

import jinja2
import pytest
from jinja2.exceptions import SecurityError

from prompts.sandbox import limited, sandbox

LOOP = "{% for a in many %}{% for b in many %}{% for c in many %}{% endfor %}{% endfor %}{% endfor %}"
CALLS = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}"
MANY = range(1000)  # 1,000 ** 3 rounds: minutes


def template(text: str, filename: str = "t1.j2") -> jinja2.Template:
    """A template as the registry makes it."""
    environment = sandbox()
    return jinja2.Template.from_code(environment, environment.compile(text, filename=filename), environment.globals)


@pytest.mark.parametrize("text", ["{{ 'a' * 9 }}", "{{ [1] * 9 }}", "{{ 9 ** 9 }}", "{{ '%9d' % 1 }}"])
def test_sandbox_multiplies_numbers_alone(text: str) -> None:
    """What makes much of little is refused; a plain product is none of that."""
    with pytest.raises(SecurityError, match="is for numbers, and there are no powers"):
        template(text).render()
    assert template("{{ 6 * 7 % 50 }}").render() == "42"


@pytest.mark.parametrize("method", ["center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"])
@pytest.mark.parametrize(
    "way", ["'a'.{}(9)", "('a' | attr('{}'))(9)", "'a'['{}'](9)", "(['a'] | map(attribute='{}') | first)(9)"]
)
def test_sandbox_pads_no_text(way: str, method: str) -> None:
    """A number in a template does not become as many characters, by whichever method and however it is reached."""
    with pytest.raises((SecurityError, jinja2.UndefinedError), match="unsafe"):
        template("{{ " + way.format(method) + " }}").render()


@pytest.mark.parametrize("call", ["center(9)", "indent(9)", "format(1)", "batch(9, 'x')", "slice(9)", "random"])
def test_sandbox_lacks_filters_that_pad_or_differ(call: str) -> None:
    """They are unknown as soon as the file is read."""
    with pytest.raises(jinja2.TemplateAssertionError, match="No filter named"):
        template("{{ 'a' | " + call + " }}")


def test_sandbox_has_no_globals() -> None:
    """There is no range, and no other function of Jinja2."""
    with pytest.raises(jinja2.UndefinedError, match="'range' is undefined"):
        template("{{ range(9) }}").render()


def test_json_stays_on_its_line() -> None:
    """What ends a line, or can't be sent, is escaped; the rest is as it was."""
    assert template("{{ text | json }}").render(text='ö"\n\u2028\ud800') == '"ö\\"\\n\\u2028\\ud800"'


@pytest.mark.parametrize("text", [LOOP, CALLS], ids=["loops", "calls"])
def test_limit_ends_what_computes_for_too_long(text: str) -> None:
    """Loops that print nothing, and calls that double, end with the limit in the error."""
    with pytest.raises(SecurityError, match=r"computes for longer than 0\.01 s"), limited("t1.j2", cpu_s=0.01):
        template(text).render(many=MANY)


def test_limit_is_for_one_file_and_leaves_no_trace() -> None:
    """Other code may take its time, and afterwards the thread is traced by whom it was before."""
    before = sys.gettrace()
    with limited("t2.j2", cpu_s=-1):
        assert template("{% for a in many %}{{ a }}{% endfor %}").render(many=range(3)) == "012"
    assert sys.gettrace() is before
    with pytest.raises(SecurityError), limited("t1.j2", cpu_s=-1):
        template("a").render()
    assert sys.gettrace() is before
