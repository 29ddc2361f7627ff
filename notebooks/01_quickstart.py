# %% [markdown]
# # Quickstart: one policy, one run, one chart
#
# A *policy* says what happens to the KV cache: which tokens stay, how they are written, how a new request finds earlier
# KV, and where KV rests between requests. `|` composes it from parts; a part that you leave out keeps its default.

# %%
import kvlab
from kvlab import charts

MODEL = "bundled"  # or "smollm2-135m" (kvlab models), a folder, a hub id such as "mlx-community/Qwen3-0.6B-4bit"
model = kvlab.load(MODEL)

# %%
policy = kvlab.Policy.parse("tiered:ram=500MB,ssd=2GB")
policy

# %% [markdown]
# An agent with a long system prompt and tools works through five turns. Every prompt is the one before it and a little
# more. `compare` serves the same prompts without any reuse (`full`) and under the policy.

# %%
results = kvlab.compare(["full", policy], workload="agent", model=model, turns=5)
results

# %% [markdown]
# `full` computes the whole prompt at every turn. `tiered` does so at the first turn only; after it, the time to first
# token is that of the few new tokens. *exact: yes* means that its answers are those of the uncached run, token for
# token: tested here, not assumed.

# %%
charts.ttft_by_turn(results.frame())

# %% [markdown]
# Everything above is in tidy rows, one measurement a row, as a Polars frame. `results.save("runs/mine")` keeps it,
# together with every event of the run; `kvlab.Results.load` reads it back.

# %%
results.frame().filter(metric="cached_tokens", policy=str(policy)).select("policy", "turn", "phase", "metric", "value")

# %% [markdown]
# Next: [watch it evict](02_watch_it_evict.ipynb). `kvlab.registry()` lists the parts that there are.
