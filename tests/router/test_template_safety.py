"""Tests that a checkpoint's chat template can't access the machine."""

from pathlib import Path
from typing import Any

import pytest

from router.text.template import ChatTemplate

MESSAGES = [{"role": "user", "content": "hi"}]
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ ('{0.__class__.__init__}' | format)(messages) }}",
    "{% set x = messages.append({'role': 'user'}) %}",
    "{% set x = messages[0].update({'content': 'x'}) %}",
    "{{ range(10000000) | list }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ open('/etc/passwd').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ (messages | attr('__class__')).__bases__ }}",
]


# An attribute the sandbox hides reads as nothing; anything done with that nothing is refused.
HIDDEN = [
    "{{ messages.__class__ }}",
    "{{ messages[0].items.__func__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ '{0.__class__}'.format(messages) }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_an_escape_is_refused(source: str) -> None:
    given = [dict(m) for m in MESSAGES]
    with pytest.raises(ValueError, match="chat template refuses"):
        ChatTemplate(source, {}).render(given)
    assert given == MESSAGES


@pytest.mark.parametrize("source", HIDDEN)
def test_a_hidden_attribute_is_undefined(source: str) -> None:
    assert ChatTemplate(source, {}).render([dict(m) for m in MESSAGES]).text == ""


def test_allowed_features_of_templates_work() -> None:
    source = "{% for m in messages %}{{ m['role'] }}: {{ m.content | upper }} {{ m | tojson }}{% endfor %}"
    assert ChatTemplate(source, {}).render(MESSAGES).text == 'user: HI {"role": "user", "content": "hi"}'


def test_a_template_does_not_change_its_messages() -> None:
    """A template may change its own namespaces, but not its input."""
    given: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    source = "{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}"
    assert ChatTemplate(source, {}).render(given).text == "1"
    assert given == MESSAGES


def test_python_files_beside_the_weights_are_not_run(tmp_path: Path) -> None:
    """Code in the folder, which other loaders run if told to trust it, is never read."""
    (tmp_path / "modeling_ling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"chat_template": "{{ messages[0].content }}", "auto_map": {"AutoTokenizer": "modeling_ling.Tokenizer"}}'
    )
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    assert template.render(MESSAGES).text == "hi"
    assert not (tmp_path / "ran").exists()
