"""The price of each model: a table, and what the configuration declares over it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from nemo_agents.gateway.pricedecl import declared_prices
from nemo_agents.policy.pricing import Price
from nemo_agents.policy.routing import SANDBOX

if TYPE_CHECKING:
    from nemo_agents.gateway.pricetable import PriceTable

__all__ = ["FREE", "PriceBook", "declared_prices"]

_NAME_LENGTH_MAX: Final = 256
_CACHE_SIZE: Final = 4096


class PriceBook:
    """The price of each model at each provider.

    The package's table is read when it is first needed, or by `load`; `replace` puts another in its place while
    requests run. `declared` prices (by `provider/model`, by a bare name for every provider, or by `provider/*` for all
    of its models) count over the table's. `now` gives the time for prices that depend on it (off-peak, announced
    changes). `priced_as` maps a configured provider to the one whose prices it charges.
    """

    def __init__(
        self,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(tz=UTC),
        declared: Mapping[str, Price] | None = None,
        priced_as: Mapping[str, str] | None = None,
    ) -> None:
        self.now = now
        self._declared = dict(declared or {})
        self._priced_as = dict(priced_as or {})
        self._table: PriceTable | None = None
        self._changing = threading.Lock()
        self._owner = lru_cache(maxsize=_CACHE_SIZE)(self._search_owner)

    def load(self) -> PriceTable:
        """Return the table that counts, reading the package's own first, which takes some tenths of a second.

        Any thread may do it.
        """
        table = self._table
        if table is None:
            from nemo_agents.gateway.pricetable import PriceTable  # noqa: PLC0415 - slow, and seldom needed at once

            with self._changing:
                table = self._table = self._table or PriceTable(self.now)
        return table

    def replace(self, table: PriceTable | None) -> None:
        """Let another table count from the next look-up on; None: the package's own.

        A call that is on its way keeps the Price that its hold was opened with.
        """
        with self._changing:
            self._table = table
            self._owner = lru_cache(maxsize=_CACHE_SIZE)(self._search_owner)

    def price(self, provider: str, model: str) -> Price | None:
        """Return the price of a model at a provider; None when it is not known, which is not free.

        The sandbox charges what the model it stands for costs.
        """
        if provider == SANDBOX:
            named, slash, rest = model.partition("/")
            if not slash:
                named, rest = self.provider_of(model) or "", model
            return None if named == SANDBOX else self.price(named, rest)
        for name in (f"{provider}/{model}", model, f"{provider}/*"):
            if name in self._declared:
                return self._declared[name]
        return self.load().price(*self._in_table(provider, model))

    def context_tokens(self, provider: str, model: str) -> int | None:
        """Return how many tokens a model's context has at a provider; None when that is not known.

        The sandbox takes what the model it stands for does.
        """
        if provider == SANDBOX:
            named, slash, rest = model.partition("/")
            if not slash:
                named, rest = self.provider_of(model) or "", model
            return None if named in ("", SANDBOX) else self.context_tokens(named, rest)
        return self.load().context_tokens(*self._in_table(provider, model))

    def _in_table(self, provider: str, model: str) -> tuple[str, str]:
        """Return provider and model as the table has them; at Vertex AI the publisher is part of a model's name."""
        seller = self._priced_as.get(provider, provider)
        return seller, model.removeprefix("google/") if seller == "gemini" else model

    def provider_of(self, model: str) -> str | None:
        """Return the provider that a bare model name belongs to; None when no provider is known for it.

        A model that follows a provider's naming is that provider's, also when it is too new to have a price
        here.
        """
        return self._owner(model)

    def effective(self) -> Iterator[tuple[str, Price]]:
        """Yield every `provider/model` that has a price, with the price that counts: declared first, then the table's.

        A declared name may also be bare, or end in `/*`.
        """
        yield from self._declared.items()
        for provider, model, price in self.load().models():
            names = (f"{provider}/{model}", model, f"{provider}/*")
            if price is not None and not any(name in self._declared for name in names):
                yield names[0], price

    def _search_owner(self, model: str) -> str | None:
        for name in self._declared:
            provider, _, rest = name.partition("/")
            if rest == model:
                return provider
        if not 0 < len(model) <= _NAME_LENGTH_MAX:
            return None
        return "openai" if model.startswith("ft:") else self.load().owner(model)


FREE: Final = Price(input=0, cached_input=0, cache_write=0, output=0, version="free")
"""The price of models that run on the user's own machine."""
