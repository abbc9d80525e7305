"""What is asked before something is changed: yes or no, a number, the name of a task."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from .words import plain


class Confirm(ModalScreen[bool]):
    """Asks whether something is meant; the answer is No unless somebody says Yes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("y", "answer(True)", "Yes"),
        ("n", "answer(False)", "No"),
        ("escape", "answer(False)", "No"),
    ]

    def __init__(self, question: str, yes: str) -> None:
        super().__init__()
        self._question, self._yes = question, yes

    def compose(self) -> ComposeResult:
        """Draw the question."""
        with Vertical(classes="question"):
            yield Static(plain(self._question))
            with Horizontal():
                yield Button("No", id="no")
                yield Button(self._yes, id="yes", variant="warning")

    def on_mount(self) -> None:
        """Begin at No."""
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer."""
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        """Answer by a key."""
        self.dismiss(answer)


class Ask(ModalScreen[str]):
    """Asks for a line of text; "" where nobody wants to say any."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss('')", "Back")]

    def __init__(self, question: str, given: str = "") -> None:
        super().__init__()
        self._question, self._given = question, given

    def compose(self) -> ComposeResult:
        """Draw the question."""
        with Vertical(classes="question"):
            yield Static(plain(self._question))
            yield Input(self._given)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Answer."""
        self.dismiss(event.value.strip())
