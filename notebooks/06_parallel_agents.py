# %% [markdown]
# # Agents side by side
#
# Agents of one kind begin alike: the same system prompt, the same tools. Without sharing, each one that is running holds
# that prefix for itself. Under `paged` and `tiered` those that run at the same time hold it once.

# %%
import kvlab
from kvlab import charts, widgets

MODEL = "bundled"  # or "smollm2-135m" (kvlab models), a folder, a hub id such as "mlx-community/Qwen3-0.6B-4bit"
model = kvlab.load(MODEL)

# %% [markdown]
# One agent, then four at once, two turns each.

# %%
runs = {n: kvlab.compare(["full", "paged"], workload="agent", model=model, turns=2, n=n, concurrency=n) for n in (1, 4)}
runs[4]

# %% [markdown]
# *live KV* is what one sequence holds when it ends, its share of common prefixes included. The answers are the same
# (*exact*). What four agents hold under `paged`, of what they hold under `full`:

# %%
held = dict(runs[4].summary().select("policy", "kv_bytes_live").iter_rows())
print(f"{held['paged'] / held['full']:.0%}")

# %% [markdown]
# Move the slider between one and four agents: the height is memory, the width is the time until all are done.

# %%
widgets.agents_side_by_side(runs)

# %% [markdown]
# The gaps between two tokens (*inter-token latency*), as curves: the further left, the faster; a long tail to the right
# is an agent that waited while another one's prompt was computed.

# %%
agents = widgets.agents_side_by_side(runs)
agents.set(view="gaps")
agents

# %% [markdown]
# Time to first token, by turn: without reuse four agents compute four whole prompts, with it one and three small rests.

# %%
charts.ttft_by_turn(runs[4].frame())
