# %% [markdown]
# # Write your own policy
#
# Eviction is one method: a score for every token and head; the highest stay. Budgets, heads, batches, eviction while
# decoding, recording and serving are done for you. Defining the class is all the registration there is.

# %%
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import polars as pl

import kvlab
from kvlab import charts, widgets
from kvlab.workloads import load_workload

MODEL = "bundled"  # or "smollm2-135m" (kvlab models), a folder, a hub id such as "mlx-community/Qwen3-0.6B-4bit"
model = kvlab.load(MODEL)


# %%
@dataclass(frozen=True)
class Loud(kvlab.Scorer):
    """Rows that the last queries looked at, by how much their values say."""

    name: ClassVar[str] = "loud"
    window: int = 16  # last queries to look at; their own rows stay

    def score(self, context: kvlab.ScoreContext) -> mx.array:
        _, heads, length, _ = context.keys.shape
        looked_at = context.attention.reshape(1, heads, -1, length).mean(axis=2)
        said = mx.linalg.norm(context.values, axis=-1)
        return mx.where(context.positions >= context.offset - self.window, mx.inf, looked_at * said)


# %% [markdown]
# It has a name and parameters now, like every other: in specs, on the command line of this process, in results.

# %%
kvlab.Policy.parse("loud:budget=0.25,window=8")

# %% [markdown]
# ## Compared
# Four documents at once, one question about each, half or seven eighths of the KV thrown away. `random` is the floor that
# every method must beat, `full` what there is to lose.

# %%
# Questions that the model answers right as long as it has all of its KV.
task = "retrieval" if MODEL == "bundled" else "needle:single"
documents = load_workload(task, tokens=500, n=4)
budgets = (0.5, 0.125)
policies = ["full", *(f"{name}:budget={budget}" for name in ("loud", "snapkv", "random") for budget in budgets)]
results = kvlab.compare(policies, workload=documents, model=model, concurrency=4)
results

# %%
results.said(most=2)

# %%
graded = results.frame().filter(pl.col("void").is_null(), metric="accuracy")
charts.accuracy_by_policy(graded) if len(graded) else "no chart: full itself fails these questions"

# %% [markdown]
# ## Watched
# The run recorded every eviction: which position left which layer and head at which step.

# %%
lost = results.recorders["loud:budget=0.125"].frame("evicted")
lost.group_by("layer", "head").len().sort("layer", "head")

# %%
document = "The code of @mira is #417. The sky was grey that day. The code of @tano is #808. Nobody came by train."
widgets.watch_evictions({"a question": f"{document * 3} What is the code of @mira?"}, model, policy="loud", budget=0.3)

# %% [markdown]
# ## Served
# The same object behind an endpoint that speaks OpenAI's protocol, for the real `openai` client
# (`pip install openai` where it is missing). Two questions at the same time, each with its own evictions. Served or not,
# a policy answers alike: with two thirds of the KV the bundled model has both answers right, with half of it it has lost
# both numbers.

# %%
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI

asked = load_workload(task, tokens=400, n=2, seed=5).requests()
with kvlab.serve(Loud(budget=0.65), model) as server:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="-")

    def ask(request):
        return client.chat.completions.create(model=model.name, messages=list(request.messages), max_tokens=24)

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(ask, asked))

for request, answer in zip(asked, answers, strict=True):
    print(f"{answer.choices[0].message.content!r}, wanted {request.reference['content']!r}")

# %% [markdown]
# ## From the command line
# The cell of the class goes into a file, with the imports that it needs. `--import` makes it known to `kvlab ask`,
# `compare`, `run` and `serve`, which are processes of their own.

# %%
import linecache
import subprocess
import sys
from pathlib import Path

NEEDS = """from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

import kvlab


"""
cell = linecache.getlines(Loud.score.__code__.co_filename)
Path("loud.py").write_text(NEEDS + "".join(cell))

policies = "full,loud:budget=0.65,random:budget=0.3"
line = f"kvlab compare --model {MODEL} --import loud.py --policies {policies} --workload {task} --tokens 400"
done = subprocess.run([sys.executable, "-m", *line.split()], capture_output=True, text=True, check=True)
print(done.stdout)
