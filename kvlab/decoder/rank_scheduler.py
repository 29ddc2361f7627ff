"""``RankScheduler``: the decoder's thread on one rank of a model that is split over several."""

from __future__ import annotations

from typing import Any, ClassVar

import mlx.core as mx

from kvlab.decoder.config import DecoderConfig
from kvlab.decoder.event_emitter import EventEmitter
from kvlab.decoder.inbox import Inbox
from kvlab.decoder.ranks import Ranks, without_time
from kvlab.decoder.request import Request
from kvlab.decoder.scheduler import Scheduler
from kvlab.errors import ModelError
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.store import Store


class RankScheduler(Scheduler):
    """Takes each step with the same requests as the other ranks, and follows nothing that they may see otherwise.

    Prompts and answers share a stream: sums on two streams of a rank would meet those of the others in any order. Any
    error ends all requests, also those that still come, because the other ranks go on.

    Args:
        ranks: agrees with the other ranks.
        other arguments: those of :class:`Scheduler`.

    Raises:
        ModelError: some of the model's layers cannot be cut at a token, and the policy keeps KV at rest.
    """

    one_stream: ClassVar[bool] = True
    follows_time: ClassVar[bool] = False

    def __init__(
        self,
        loaded: LoadedModel,
        policy: Policy,
        store: Store | None,
        emitter: EventEmitter,
        config: DecoderConfig,
        inbox: Inbox,
        *,
        ranks: Ranks,
        **options: Any,
    ) -> None:
        super().__init__(loaded, policy, store, emitter, without_time(config), inbox, **options)
        self._ranks = ranks
        if self.reuse is not None:
            if self.reuse.wants_checkpoints:
                raise ModelError(
                    f"{loaded.name} has layers that cannot be cut at a token: split over ranks, it keeps no KV at "
                    "rest; write full"
                )
            self.reuse.agree = ranks.least

    def _run(self) -> list[Request] | None:
        try:
            self._ranks.share_seed()
            unfinished = super()._run()
            mx.synchronize(self._generator.stream)  # sums under way would mix with those of the next decoder
        except Exception as error:  # noqa: BLE001 - of the model, of the store, or of another rank
            self._fail_all(error)
            for request in self._waiting:
                request.stream.fail(error)
            self.inbox.refuse(error)
            if self.reuse:
                self.reuse.close()
            return None
        return unfinished

    def _survive(self, error: Exception) -> None:
        raise error

    def _fail_one(self, request: Request, error: Exception) -> None:
        super()._fail_one(request, error)
        raise error

    def _hand_over(self) -> list[Request]:
        raise ModelError("a model that is split over ranks was changed while it ran: load it again")

    def _take_token(self, response: Any, now: float, share: int) -> None:
        self._ranks.note(self._active[response.uid].number, response.token)
        super()._take_token(response, now, share)
