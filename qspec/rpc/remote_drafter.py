"""``Drafter`` behind gRPC."""

from __future__ import annotations

import grpc

from qspec.errors import ContractViolation
from qspec.interfaces import DraftAnswer, DraftBatch, DrafterDescription, SlotOutcome, VerifierDescription
from qspec.overlap import Pending
from qspec.rpc.batch_stream import BatchStream, PendingAnswer, StreamCall
from qspec.rpc.channel import open_channel
from qspec.rpc.drafter_codec import (
    attach_request_to_pb,
    attach_response_from_pb,
    draft_answer_from_pb,
    draft_batch_to_pb,
)
from qspec.rpc.errors import from_rpc_error
from qspec.v1 import drafter_pb2, drafter_pb2_grpc


class RemoteDrafter:
    """The drafter at ``address``, over one long-lived stream that is opened again when it was lost.

    Args:
        address: ``unix:PATH`` or ``HOST:PORT``.
        answer_timeout_s: seconds within which each batch must be answered.
        load_timeout_s: seconds within which ``attach`` must be answered; waits for the process and for its model.
    """

    def __init__(self, address: str, *, answer_timeout_s: float = 10.0, load_timeout_s: float = 600.0) -> None:
        self._peer = f"the drafter at {address}"
        self._answer_timeout_s = answer_timeout_s
        self._load_timeout_s = load_timeout_s
        self._channel = open_channel(address, field="drafter")
        self._stub = drafter_pb2_grpc.DrafterServiceStub(self._channel)
        self._stream: BatchStream[drafter_pb2.DraftRequest, drafter_pb2.DraftResponse] = BatchStream(
            self._stub.Draft, timeout_s=answer_timeout_s, peer=self._peer
        )

    def attach(self, verifier: VerifierDescription) -> DrafterDescription:
        """See ``Drafter``; returns once the model is loaded and the arena mapped."""
        try:
            message = self._stub.Attach(
                attach_request_to_pb(verifier), timeout=self._load_timeout_s, wait_for_ready=True
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._peer) from None
        return attach_response_from_pb(message)

    def detach(self, epoch: int) -> None:
        """See ``Drafter``."""
        try:
            self._stub.Detach(drafter_pb2.DetachRequest(epoch=epoch), timeout=self._answer_timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._peer) from None

    def draft(self, batch: DraftBatch) -> DraftAnswer:
        """See ``Drafter``."""
        return self.begin_draft(batch).result()

    def begin_draft(self, batch: DraftBatch) -> Pending[DraftAnswer]:
        """See ``qspec.overlap.HandingDrafter``."""
        call = self._stream.send(draft_batch_to_pb(batch))
        return PendingAnswer(lambda: self._answer(batch, call), lambda: self._stream.drop(call))

    def _answer(self, batch: DraftBatch, call: StreamCall[drafter_pb2.DraftResponse]) -> DraftAnswer:
        message = self._stream.receive(call)
        try:
            answer = draft_answer_from_pb(message)
            _check(batch, answer)
        except ContractViolation:
            self._stream.drop()
            raise
        return answer

    def close(self) -> None:
        """Close stream and channel; the drafter goes on."""
        self._stream.close()
        self._channel.close()


def _check(batch: DraftBatch, answer: DraftAnswer) -> None:
    """Raise ``ContractViolation`` unless ``answer`` is one to ``batch``."""
    if (answer.epoch, answer.round) != (batch.epoch, batch.round):
        raise ContractViolation(f"the drafter answered round {answer.round}, not {batch.round}")
    if [(r.slot, r.lease) for r in answer.results] != [(i.slot, i.lease) for i in batch.items]:
        raise ContractViolation("the drafter did not answer for the slots that it was asked about, in their order")
    for item, result in zip(batch.items, answer.results, strict=True):
        drafted = len(result.draft_tokens)
        may_be_short = item.early_stop is not None or batch.time_left_s is not None or item.end_len > 0
        short = drafted < item.draft_length and not may_be_short
        if result.outcome is SlotOutcome.OK and (drafted > item.draft_length or short):
            raise ContractViolation(f"{item.draft_length} drafts were asked for, {drafted} came")
