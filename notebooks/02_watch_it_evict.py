# %% [markdown]
# # Watch it evict
#
# A policy with a budget throws KV away. Which tokens, in which layer and head, and when? Here the text itself says it.

# %%
import kvlab
from kvlab import charts, widgets
from kvlab.workloads import load_workload

MODEL = "bundled"  # or "smollm2-135m" (kvlab models), a folder, a hub id such as "mlx-community/Qwen3-0.6B-4bit"
model = kvlab.load(MODEL)

# %% [markdown]
# Three requests over one short document of facts: a question, a second question in the same conversation, and that
# second question asked by somebody else about the same document. The first is served alone, the others then together.

# %%
first, second = load_workload("retrieval", tokens=220, turns=2, seed=1).requests()
document = first.messages[-1]["content"].rpartition("\n\n")[0]
question = second.messages[-1]["content"]
prompts = {
    "a question": first.messages,
    "its follow-up": second.messages,
    "somebody else": [*first.messages[:-1], {"role": "user", "content": f"{document}\n\n{question}"}],
}
question

# %% [markdown]
# Choose a policy and a budget, a layer and a KV head, and move `step` (or press play): step 0 is the end of the prompt,
# each further step one token of the answer. In the policy box a name takes the budget; a whole spec, such as
# `quantized:bits=4`, stands as it is. *paged reuse* keeps the KV of earlier requests and starts from it. With *all*
# layers and heads, the redder a token, the more of them have lost it.

# %%
panel = widgets.watch_evictions(prompts, model, policy="snapkv", budget=0.3)
panel

# %% [markdown]
# `snapkv` keeps what the last tokens of the prompt attended to, so which tokens go depends on the question, and every
# layer and head decides for itself. Struck through is what no layer and no head kept.
#
# With reuse and no eviction, all other colours show up. The follow-up restores its whole past from KV at rest; the
# third request does not even copy it, but shares the rows of the follow-up while both are running.

# %%
shared = kvlab.watch("paged", list(prompts.values()), model)
shared[1]

# %%
shared[2]

# %% [markdown]
# The same as a map of one request: position across, decode step down, a panel for each layer and KV head.

# %%
one = kvlab.watch("snapkv:budget=0.3", [prompts["a question"]], model)[0]
charts.eviction_map(one.evicted.with_columns(request=0), length=len(one.texts), steps=one.steps, layers=one.layers[:2])

# %% [markdown]
# And the answers. The third request asks for a fact at the start of the document: a window of the last 48 tokens has
# lost it by then. The bundled model's answer comes without the number then, and with it under the two others.

# %%
for policy in ("full", "snapkv:budget=0.3", "rotating:window=48"):
    print(f"{policy:20} {kvlab.watch(policy, [prompts['somebody else']], model)[0].answer.strip()}")
