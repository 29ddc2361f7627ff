# %% [markdown]
# # Where the time to first token goes
#
# From the moment a request is accepted to its first token: it waits for a place (*queue*), the store is asked what it
# has (*lookup*), KV at rest becomes live KV (*restore*), the rest of the prompt is computed (*prefill*), and the last
# prompt token is computed and a token sampled (*first token*).

# %%
import polars as pl

import kvlab
from kvlab import charts, widgets

MODEL = "bundled"  # or "smollm2-135m" (kvlab models), a folder, a hub id such as "mlx-community/Qwen3-0.6B-4bit"
model = kvlab.load(MODEL)

# %% [markdown]
# Six turns of an agent, without reuse, with reuse from memory, and with reuse from memory and SSD. Half-way the processes
# of `paged` and `tiered` end, and others go on with nothing in memory; that of `tiered` takes over its folder.

# %%
results = kvlab.compare(["full", "paged", "tiered"], workload="agent", model=model, turns=6, restart=True)
results

# %%
parts = charts.ttft_parts(results.events)
charts.ttft_waterfall(parts)

# %% [markdown]
# Without reuse nearly all of it is prefill, at every turn. With reuse that is so at the first turn, and for `paged` once
# more after the restart. What is left of the other turns is small; leave those two out to see it.

# %%
later = parts.filter((pl.col("turn") > 1) & ((pl.col("policy") != "paged") | (pl.col("turn") != 4)))
charts.ttft_waterfall(later, policies=["paged", "tiered"])

# %% [markdown]
# Turn 4 of `tiered` is the first in the new process: there KV is restored, from files. At the other turns the rows of the
# turn before are still live, and the new turn takes them over as they are. The panel below says for each turn what was
# found, from which tier, and why the rest had to be computed.

# %%
widgets.ttft_by_part(results, policy="tiered")
