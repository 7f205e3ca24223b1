"""Attributes' docstrings reach the page as they are written."""

from docs import prose


class App:
    """Calls what is connected, in the order of priorities, with something like napoleon at 500."""

    def __init__(self) -> None:
        self.handlers = [(500, lambda _app, _what, _name, _value, _options, lines: lines.reverse())]

    def connect(self, event: str, handler, priority: int) -> None:
        assert event == "autodoc-process-docstring"
        self.handlers.append((priority, handler))

    def process(self, what: str, lines: list[str]) -> list[str]:
        for _, handler in sorted(self.handlers, key=lambda item: item[0]):
            handler(self, what, "name", None, None, lines)
        return lines


def test_a_paragraph_of_an_attribute_is_kept_and_sections_are_not() -> None:
    app = App()
    prose.connect(app)
    text = ["What it does: it listens.", "And no more.", ""]
    assert app.process("attribute", list(text)) == text
    assert app.process("class", list(text)) == text[::-1]
    sections = ["What it does.", "", "Raises:", "    ValueError: always.", ""]
    assert app.process("property", list(sections)) == sections[::-1]
