"""Clients that hurt others: each attack sends one kind of costly input to a server until its time is over."""
