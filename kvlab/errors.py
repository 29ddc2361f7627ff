"""Errors that kvlab shows to its users: one clear line each, which says what to write instead."""


class KvlabError(ValueError):
    """Base of every error that comes from what the user asked for or from the state of the machine."""


class PolicyError(KvlabError):
    """An unknown policy module, a bad parameter, or a combination that cannot work."""


class ModelError(KvlabError):
    """A model that cannot be found, loaded or used with the policy asked for."""


class StoreError(KvlabError):
    """A store folder that cannot be opened, or a tier with an impossible setting."""


class WorkloadError(KvlabError):
    """An unknown workload, or a transcript that cannot be read."""


class RunError(KvlabError):
    """An experiment file, run folder or figure that cannot be used."""


class PolicyWarning(UserWarning):
    """A policy that will run, but hardly as it is meant to."""


class BackendWarning(UserWarning):
    """MLX will run, but slower than it could, or not on the device that was installed for it."""
