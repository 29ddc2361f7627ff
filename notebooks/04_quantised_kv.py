# %% [markdown]
# # Quantised KV: quality against bytes
#
# A codec writes keys and values with fewer bits. How few will do depends on the model and on what is asked; here both
# sides are measured: the bytes that a sequence holds, and what that does to its answers.

# %%
import polars as pl

import kvlab
from kvlab import charts, widgets
from kvlab.inspection import divergence
from kvlab.results import row
from kvlab.workloads import load_workload

MODEL = "bundled"  # or "smollm2-135m" (kvlab models), a folder, a hub id such as "mlx-community/Qwen3-0.6B-4bit"
model = kvlab.load(MODEL)

# %% [markdown]
# The same six questions with KV in the model's own dtype, in 8, 4 and 2 bits (a group of 64 or 32 channels shares a
# scale), and, to compare, with a quarter of the tokens at full precision.

# %%
# Questions that the model answers right as long as it has all of its KV.
task = "retrieval" if MODEL == "bundled" else "needle:single"
policies = [
    "full",
    "quantized:bits=8",
    "quantized:bits=4",
    "quantized:bits=2,group=32",
    "quantized:bits=2",
    "snapkv:budget=0.25",
]
results = kvlab.compare(policies, workload=load_workload(task, tokens=500, n=6), model=model, concurrency=6)
results

# %% [markdown]
# What each one said to three of the questions, those where they disagree first:

# %%
results.said(most=3)

# %% [markdown]
# Right answers are a coarse measure. A finer one: how far the distribution of the next token is from the one without
# the codec, in nats, over the reference answers of the same kind of questions (*KL*, 0 is no difference).

# %%
rows = list(results.rows)
for request in load_workload(task, tokens=400, n=3, seed=7).requests():
    prompt, answer = model.render(list(request.messages)), model.encode(request.reference["content"])
    for policy in results.policies:
        kl = divergence(policy, prompt, answer, model).mean()
        rows.append(row(policy, task, "kl", kl, conversation=request.conversation))
measured = kvlab.Results(rows, results.provenance)

# %%
widgets.quality_against_bytes(measured.frame())

# %%
by_policy = measured.frame().filter(metric="kl").group_by("policy", maintain_order=True)
by_policy.agg(mean_kl=pl.col("value").mean(), worst_kl=pl.col("value").max())

# %% [markdown]
# With the bundled model, moving left costs nothing for a while, and then suddenly does. Where that edge lies is what to
# look for with a model of your own; `kvlab.registry()` lists the codecs there are.

# %%
graded = results.frame().filter(pl.col("void").is_null(), metric="accuracy")
charts.accuracy_by_policy(graded) if len(graded) else "no chart: full itself fails these questions"
