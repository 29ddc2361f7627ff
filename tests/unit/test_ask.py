"""`kvlab ask`: one answer, what became of every token, and its figures; with wrong input, one line."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvlab import models
from kvlab.cli import ask as command
from kvlab.cli.main import main
from kvlab.errors import ModelError
from kvlab.inspection.request_trace import _dropped
from kvlab.models import LoadedModel
from kvlab.recording.events import Shifted

QUESTION = "The code of @mira is #417. The sky was grey. What is the code of @mira?"


class Input(io.TextIOWrapper):
    """Standard input that holds bytes; ``isatty`` as given."""

    def __init__(self, data: bytes = b"", tty: bool = False) -> None:
        super().__init__(io.BytesIO(data), encoding="ascii")
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


@pytest.fixture(autouse=True)
def quick(bundled: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled model is loaded once, and standard input is a terminal."""
    load = models.load

    def once(model: str | None, adapter: str | None = None, dtype: str | None = None) -> LoadedModel:
        return load(model, adapter=adapter, dtype=dtype) if model or adapter or dtype else bundled

    monkeypatch.setattr(models, "load", once)
    monkeypatch.setattr(sys, "stdin", Input(tty=True))


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["ask", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_answer_comes_first_then_the_tokens_then_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", QUESTION, "--policy", "snapkv:budget=0.5,window=8"]) == 0
    out, err = capsys.readouterr()
    answer, legend, figures = out.strip().split("\n\n", 1)[0], *out.strip().rsplit("\n\n", 2)[1:]
    assert err == ""
    assert "#" in answer and f"\n\nAnswer, 9 tokens\n{answer}\n\n" in out
    assert "\n\nPrompt, 34 tokens\n[-" in out and "[~" in out and "\x1b" not in out
    assert legend.startswith("kept ") and "evicted" in legend
    for part in ("snapkv:", "TTFT ", " tokens/s", "live KV ", "kept 17 of ", "cached 0 of 34 prompt tokens"):
        assert part in figures


def test_the_document_holds_rows_and_the_state_of_every_token(capsys: pytest.CaptureFixture[str]) -> None:
    made = document(capsys, QUESTION, "--policy", "snapkv:budget=0.5,window=8", "--max-tokens", "4")
    rows = {row["metric"]: row for row in made["rows"]}
    assert made["command"] == "ask" and made["provenance"]["finish_reason"] in ("length", "stop")
    assert {"ttft_ms", "tokens_per_s", "kv_bytes_live", "kept_tokens", "cached_tokens", "prompt_tokens"} <= set(rows)
    assert all({"policy", "workload", "metric", "value", "unit"} <= set(row) for row in made["rows"])
    assert rows["text"]["question"] == QUESTION
    assert rows["text"]["text"] == "".join(token["text"] for token in made["tokens"] if token["generated"])
    assert rows["prompt_tokens"]["value"] == sum(not token["generated"] for token in made["tokens"]) == 34
    kept = sum(1 - token["evicted_share"] for token in made["tokens"])
    assert rows["kept_tokens"]["value"] == pytest.approx(kept) and kept < len(made["tokens"])
    assert {token["state"] for token in made["tokens"]} >= {"kept", "evicted"}


def test_weights_and_kv_are_of_the_dtype_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    live = {}
    for dtype in ("float32", "bfloat16"):
        found = document(capsys, "The code of @mira is #417.", "--dtype", dtype, "--max-tokens", "1")
        [live[dtype]] = [row["value"] for row in found["rows"] if row["metric"] == "kv_bytes_live"]
    assert live["float32"] == 2 * live["bfloat16"] > 0


@pytest.mark.parametrize("policy", ["tiered:dir={}", "quantized:bits=8|tiered:dir={}"])
def test_a_second_question_is_restored_and_says_the_same(
    policy: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spec = policy.format(tmp_path / "store")
    first, second = (document(capsys, QUESTION, "--policy", spec, "--max-tokens", "6") for _ in range(2))
    assert not [token for token in first["tokens"] if token["state"] == "restored"]
    assert [token["state"] for token in second["tokens"]][:33] == ["restored"] * 33
    assert [t["text"] for t in first["tokens"]] == [t["text"] for t in second["tokens"]]


@pytest.mark.parametrize(
    ("environment", "tty", "colored"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),  # the convention: only a value counts
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(
    environment: dict[str, str], tty: bool, colored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = Input(tty=tty)
    assert command._shows_color(out) == colored


def test_a_scorer_in_a_file_is_a_policy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import kvlab\n\nclass Latest(kvlab.Scorer):\n    name = 'latest-of-ask'\n\n"
        "    def score(self, context):\n        return context.positions\n"
    )
    asked = ["--import", str(tmp_path / "mine.py"), "--policy", "latest-of-ask:budget=8", "--max-tokens", "2"]
    states = [token["state"] for token in document(capsys, QUESTION, *asked)["tokens"] if not token["generated"]]
    assert 26 <= states.count("evicted") < 34 and states == sorted(states)  # the latest stay, within the budget


# -- context ----------------------------------------------------------------------------------------------------------


def prompt_of(made: dict) -> str:
    return "".join(token["text"] for token in made["tokens"] if not token["generated"])


def test_files_come_first_then_standard_input_then_the_question(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("\ufeffThe code of @mira is #417.\n", encoding="utf-8")
    two.write_text("The sky was grey.")
    monkeypatch.setattr(sys, "stdin", Input("Nobody came by train: ½.".encode()))
    made = document(capsys, "Who?", "--file", str(one), "--file", str(two), "--max-tokens", "2")
    wanted = "The code of @mira is #417.\n\nThe sky was grey.\n\nNobody came by train: ½.\n\nWho?"
    assert wanted in prompt_of(made) and "\ufeff" not in prompt_of(made)


@pytest.mark.parametrize("text", ["What is it?", "\nWhat\tis it? "])
def test_standard_input_alone_is_the_question(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Input(text.encode()))
    assert text.strip() in prompt_of(document(capsys, "--max-tokens", "2"))


def test_an_input_that_is_silent_is_told(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that starts the command with a pipe and forgets it; here it is closed once the command has said so."""
    read, write = os.pipe()
    monkeypatch.setattr(command, "STDIN_PATIENCE_S", 0.0)
    monkeypatch.setattr(command.click, "echo", lambda text, **_: (said.append(text), os.close(write)))
    said: list[str] = []
    with os.fdopen(read) as stdin:
        assert command._piped(stdin) == ""
    assert "</dev/null" in said[0]


def test_no_input_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Input(b"x")
    closed.close()
    assert [command._piped(stdin) for stdin in (None, closed, Input(b"x", tty=True), io.StringIO("y"))] == [
        "",
        "",
        "",
        "y",
    ]


def test_a_system_prompt_is_rendered_and_put_first_where_the_template_has_none(
    bundled: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = bundled.decode(command._prompt(bundled, "Who?", "Be brief."))
    assert rendered.index("Be brief.") < rendered.index("Who?")
    render = LoadedModel.render

    def strict(self: LoadedModel, messages: list, *_: object) -> list[int]:
        if messages[0]["role"] == "system":
            raise ModelError("no system messages")
        return render(self, messages)

    monkeypatch.setattr(LoadedModel, "render", strict)
    assert "user\nBe brief.\n\nWho?" in bundled.decode(command._prompt(bundled, "Who?", "Be brief."))


def test_a_model_without_a_template_continues_the_text(
    bundled: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    class Bare:
        has_chat_template = False
        encode = staticmethod(bundled.tokenizer.encode)

    bare = dataclasses.replace(bundled, tokenizer=Bare())
    assert command._prompt(bare, "Once", None) == bundled.encode("Once")
    assert "it continues the text" in capsys.readouterr().err


def test_a_long_answer_ends_with_the_models_context(bundled: LoadedModel) -> None:
    context = bundled.context_length
    assert context is not None
    assert command._room(bundled, [5] * (context - 3), 256) == 3
    assert command._room(bundled, [5], 4) == 4


# -- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], 'write kvlab ask "a question"'),
        (["  "], 'write kvlab ask "a question"'),
        (["x", "--policy", "snapkvv"], "snapkvv"),
        (["x", "--policy", "tiered", "--max-tokens", "0"], "'--max-tokens'"),
        (["x", "--model", "/nowhere"], "/nowhere"),
        (["x", "--adapter", "/nowhere"], "/nowhere"),
        (["x", "--file", "/nowhere"], "cannot read /nowhere"),
        (["x", "--import", "/nowhere.py"], "/nowhere.py"),
        (["x", "--file", "/"], "cannot read /"),
        (["x", "--file", "FOLDER/binary"], "no text in UTF-8"),
        (["x", "--file", "FOLDER/long"], "give less context"),
        (["x", "y"], "unexpected extra argument"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "long").write_text("grey sky " * 40_000)
    assert main(["ask", *(argument.replace("FOLDER", str(tmp_path)) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err


def test_a_binary_standard_input_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Input(b"\xff\xfe"))
    assert main(["ask", "x"]) == 2
    assert "standard input is no text in UTF-8" in capsys.readouterr().err


def test_a_budget_that_says_nothing_is_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", QUESTION, "--policy", "snapkv:budget=0.1", "--max-tokens", "2"]) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "write a larger budget, such as budget=64" in err


def test_in_a_process_with_a_pipe() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvlab", "ask", "What is the code of @mira?", "--max-tokens", "8"],
        input="The code of @mira is #417.", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "The code of @mira is #417.\n\nWhat is the code of @mira?" in done.stdout


def test_a_system_answers_in_place_of_a_policy_and_says_what_its_context_cost(
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = document(capsys, QUESTION)
    system = document(capsys, QUESTION, "--system", "llama.cpp")
    assert {row["policy"] for row in system["rows"]} == {"llama.cpp"}
    assert [token["text"] for token in system["tokens"]] == [token["text"] for token in full["tokens"]]
    assert main(["ask", QUESTION, "--system", "ollama:context=40"]) == 0
    shifted = capsys.readouterr().out
    assert "tokens dropped at the context's end" in shifted and "[-" in shifted
    assert main(["ask", 3 * QUESTION, "--system", "ollama:context=40", "--max-tokens", "2"]) == 0
    assert "tokens of the prompt's middle" in capsys.readouterr().out


def test_a_shift_marks_the_tokens_that_it_dropped() -> None:
    removed = [Shifted(0.0, 1, kept=2, removed=3, tokens=4), Shifted(0.0, 1, kept=2, removed=5, tokens=9)]
    assert list(_dropped(removed)) == [(2, 5, 4), (5, 10, 9)]


def test_a_policy_and_a_system_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", QUESTION, "--policy", "full", "--system", "omlx"]) == 2
    assert "--policy and --system exclude each other" in capsys.readouterr().err
