"""Where question and needle stand in a prompt: token positions, whatever the tokenizer makes of the text."""

from __future__ import annotations

import json

import pytest

from kvlab.experiments.spans import find_spans
from kvlab.models import LoadedModel
from kvlab.recording.recorder import Recorder
from kvlab.results.spans import SPANS, Spans, spans_key, spans_of


def text_at(model: LoadedModel, prompt: list[int], span: tuple[int, int] | None) -> str:
    assert span is not None
    return model.decode(prompt[slice(*span)])


@pytest.mark.parametrize(
    ("text", "question", "wanted", "needles"),
    [
        (
            "The code of @mira is #417. The sky is grey.\n\nWhat is it?",
            "x\n\nWhat is it?",
            "The code is #417.",
            ["#417"],
        ),
        ("The number is 1234567. Grass. What number?", "What number?", "1234567", ["1234567"]),
        ("Paris, in France, is old. Berlin. Where is it?", "Where is it?", "Paris", ["Paris"]),
        ("A 17 and a 171 and 17. Which?", "Which?", "It is 17", ["17", "17"]),
        ("naïve café №9 日本語 12. Was?", "Was?", "日本語 12", ["日本語 12"]),
        ("Nothing of it is here. Why?", "Why?", "#999", []),
        ("It asks for #417 itself: find #417", "find #417", "#417", ["#417"]),
        ("Small talk. How are you?", "How are you?", "", []),
    ],
)
def test_what_the_answer_states_is_found_outside_the_question(
    text: str, question: str, wanted: str, needles: list[str], bundled: LoadedModel, qwen3: LoadedModel
) -> None:
    for model in (bundled, qwen3):
        prompt = model.encode(text)
        spans = find_spans(model, prompt, question, wanted)
        assert spans.prompt_tokens == len(prompt)
        assert question.rsplit("\n\n")[-1] in text_at(model, prompt, spans.question)
        found = [text_at(model, prompt, span) for span in spans.needles]
        assert len(found) == len(needles) and all(a in b for a, b in zip(needles, found, strict=True)), found


def test_a_question_that_the_template_changed_is_not_marked(bundled: LoadedModel) -> None:
    prompt = bundled.encode("SHOUTED QUESTION? #417")
    spans = find_spans(bundled, prompt, "shouted question?", "#417")
    assert spans.question is None and len(spans.needles) == 1


def test_spans_come_back_from_a_saved_record(tmp_path: object, bundled: LoadedModel) -> None:
    spans = Spans(20, (15, 18), ((4, 6), (9, 10)))
    recorder = Recorder(
        {SPANS: {spans_key("c/1", 2): spans.to_json(), spans_key("d", 1): Spans(3, None, ()).to_json()}}
    )
    again = Recorder.load(recorder.save(f"{tmp_path}/record.zarr"))
    assert spans_of(again.provenance, "c/1", 2) == spans
    assert spans_of(json.loads(json.dumps(recorder.provenance)), "d", 1) == Spans(3, None, ())
    assert spans_of(again.provenance, "c/1", 3) is None and spans_of({}, "c", 1) is None
