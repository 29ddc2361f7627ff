"""How the models of each family write tool calls, one file for each kind of form."""
