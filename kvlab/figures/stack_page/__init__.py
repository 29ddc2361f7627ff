"""``docs/stack.md`` and the opening of README, written from the rows of ``experiments/stack.toml``.

``designs`` are the columns, ``measures`` the rows of the table, ``standing`` says who is first; ``claims`` is what the
article says, ``verdicts`` what the rows say to it; ``page`` puts all of it between the markers of the pages.
"""
