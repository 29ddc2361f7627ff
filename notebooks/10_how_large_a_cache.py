# %% [markdown]
# # How large a cache?
#
# Which blocks should leave, how much RAM and SSD it takes, how long the drive lasts: questions of hours of traffic. A
# replay answers them in seconds, because it moves blocks through the store's own code and computes nothing.

# %%
import json
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import numpy as np

from kvlab.bench import cost
from kvlab.replay import block_trace, load_trace, plan, read_capacity, recompute_causes, replay, replay_tiers, simulate

MODEL = "bundled"  # or "smollm2-135m" (kvlab models), a folder, a hub id such as "mlx-community/Qwen3-0.6B-4bit"
TRACE = None  # or a file: of Mooncake, of kv-cache-tester, a folder of a kvlab run; see docs/replay.md

# %% [markdown]
# ## The traffic
# Without a file: coding agents that share a system prompt. An agent calls tools, each call adding to its prompt; then
# its user reads and thinks. Now and then a prompt's head changes, or its history is summed up.


# %%
def agents(count=40, hours=4.0, block=64, seed=0):
    """Return a trace of agents: blocks, times, and whose request each is."""
    draw = np.random.default_rng(seed)
    fresh, chains, times, owners = 30, [], [], []
    for agent in range(count):
        now, chain = draw.uniform(0, 3600 * hours / 2), list(range(30))
        for _turn in range(draw.integers(4, 12)):
            for _call in range(draw.integers(1, 6)):
                kept = 5 if draw.random() < 0.02 else len(chain)
                if len(chain) > 150:
                    kept = 30  # the history is summed up
                new = draw.integers(2, 12) + (len(chain) - kept if kept == 5 else 0)
                chain = [*chain[:kept], *range(fresh, fresh + new)]
                fresh += new
                chains.append(chain)
                times.append(now)
                owners.append(agent)
                now += draw.exponential(8)
            now += draw.exponential(400)
    return block_trace("agents", block, chains, times=times, sessions=owners)


trace = agents() if TRACE is None else load_trace(TRACE)
trace

# %% [markdown]
# ## Why tokens are computed
# What no cache can give, however large: prompts that begin, go on, change at their head, or are summed up.

# %%
why = recompute_causes(trace)
why

# %%
why.chart()

# %% [markdown]
# ## Who should leave?
# `belady` knows the future: no policy without it hits more. `lru` is what most caches do.

# %%
found = replay(trace, "lru,s3fifo,gittins,belady", "2%,5%,10%,20%,50%", progress=False, workers=1)
found

# %%
found.chart()

# %% [markdown]
# What a tier of a tenth of it loses comes on top of the causes above.

# %%
recompute_causes(trace, simulate(trace, "lru", read_capacity("10%", trace)).hit_tokens)

# %% [markdown]
# ## How quick is the machine?
# `kvlab bench cost --json > cost.json` measures prompts of several lengths, restores from RAM and SSD, and writes. Here
# the same in half a minute.

# %%
with redirect_stderr(StringIO()):  # it says which sizes it leaves out for want of time
    rows = cost.run(model=MODEL, seconds=30.0)
Path("cost.json").write_text(json.dumps({"rows": rows}))
{row["metric"] + (f" {row['tier']}" if "tier" in row else ""): row["value"] for row in rows if row["unit"] != "x"}

# %% [markdown]
# ## RAM over SSD
# Waits follow from these speeds. The last column says how long a drive lasts of which 600 TB may be written.

# %%
tiers = replay_tiers(trace, "5%,20%", "0,50%,100%", cost="cost.json", progress=False, workers=1)
tiers

# %% [markdown]
# A drive that is slower than computing is left alone with `restore="auto"`: these are the waits of requests alone.

# %%
slow = "prefill=400,attention=0.0005,ram=10GB,ssd=5MB,kv_bytes=131072"
for restore in ("always", "auto"):
    one = replay_tiers(trace, "5%", "100%", cost=slow, restore=restore, progress=False, workers=1)
    waits = {row["metric"]: row["value"] / 1e3 for row in one.rows}
    print(f"{restore}: median {waits['ttft_alone_p50_ms']:.1f} s, p95 {waits['ttft_alone_p95_ms']:.1f} s")

# %% [markdown]
# ## The smallest that is enough
# For 95 % of what a cache without limit would hit, and 128 KB of KV a token, as an 8B model has.

# %%
enough = plan(trace, "95%", token_bytes=131_072, progress=False)
enough

# %%
enough.chart()
