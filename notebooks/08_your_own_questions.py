# %% [markdown]
# # Your own questions, graded your way
#
# Questions about your own texts, one a line in a file of JSON Lines, a metric that is a function of yours, and the
# answers to read: what each policy said, beside what was wanted.

# %%
import json
from pathlib import Path

import polars as pl

import kvlab

MODEL = "bundled"  # or "smollm2-135m" (kvlab models), a folder, a hub id such as "mlx-community/Qwen3-0.6B-4bit"
model = kvlab.load(MODEL)

# %% [markdown]
# ## The file
# A line needs a `question`; `context` stands in front of it, `answer` is what is right. The facts here are in words that
# the bundled model knows; a larger model takes any.

# %%
CODES = {"mira": "#417", "tano": "#808", "lena": "#611", "tolu": "#902"}
context = " ".join(f"The code of @{name} is {code}. The sky was grey that day." for name, code in CODES.items())
lines = [
    {"context": context, "question": f"What is the code of @{name}?", "answer": code, "max_tokens": 12}
    for name, code in CODES.items()
]
Path("questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
print(Path("questions.jsonl").read_text().splitlines()[0])


# %% [markdown]
# ## The metric
# A function of the model's text and the right answer that returns a number from 0 to 1. A dict of several grades does,
# too; names such as `"contains"` and `"f1"` stand for metrics that kvlab has.


# %%
def right_digits(text, wanted):
    """The share of the code's digits that stand at their places."""
    said = text.partition("#")[2]
    return sum(one == other for one, other in zip(said, wanted[1:], strict=False)) / 3


# %%
policies = ["full", "quantized:bits=8", "quantized:bits=2", "random:budget=0.25"]
results = kvlab.compare(policies, "questions.jsonl", model, metric=right_digits)
results

# %% [markdown]
# ## What it said
# Policies that said the same stand together; what differs from the answer of `full` is marked.

# %%
results.said()

# %% [markdown]
# The same as a frame: a row for each question and policy, with every grade.

# %%
results.answers().select("question", "wanted", "policy", pl.col("text").str.strip_chars(), "right_digits")

# %% [markdown]
# From the command line: `kvlab compare --policies full,quantized:bits=2 --workload questions.jsonl --metric f1`, with
# `--import FILE.py` for a metric of your own.
