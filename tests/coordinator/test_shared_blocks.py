"""Texts that share KV blocks run at once, all the way from the public port to the verifier's own blocks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from qspec.interfaces import VerifyAnswer, VerifyBatch
from qspec.v1 import generation_pb2 as pb
from tests.coordinator.test_service import served
from tests.engine.paper_workers import PaperVerifier

CHOICES = 16
PROMPT = " ".join(str(3 * index % 97) for index in range(40))  # ten blocks of 4, the last with the pending token


class WatchedVerifier(PaperVerifier):
    """Keeps in mind how many texts it had at once."""

    most = 0

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """See ``Verifier``."""
        answer = super().verify(batch)
        if batch.verifications:
            self.most = max(self.most, len(self.slots._tenancies))
        return answer


@pytest.mark.parametrize(("prefix_cache", "at_once"), [(True, CHOICES), (False, 4)])
def test_choices_of_one_prompt_run_at_once_where_they_share_its_blocks(
    prefix_cache: bool, at_once: int, tmp_path: Path
) -> None:
    async def test() -> list[str]:
        verifier: Any = WatchedVerifier(
            max_slots=CHOICES, num_blocks=44, block_size=4, max_batch_rows=64, prefix_cache=prefix_cache)
        async with served(tmp_path, verifier, max_active=CHOICES) as (stub, _, engine):
            texts = [""] * CHOICES
            async for piece in stub.Generate(pb.GenerateRequest(text=PROMPT, max_tokens=4, n=CHOICES)):
                texts[piece.choice] += piece.text
            assert verifier.most == at_once  # eleven blocks each, of which nine are the same
            assert engine.engine.preemptions == 0
            return texts

    texts = asyncio.run(asyncio.wait_for(test(), 20))
    assert set(texts) == {texts[0]} and texts[0].count(",") == 4
