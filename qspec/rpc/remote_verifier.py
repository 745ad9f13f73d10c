"""``Verifier`` behind gRPC."""

from __future__ import annotations

import contextlib

import grpc

from qspec.errors import ContractViolation
from qspec.interfaces import VerifierDescription, VerifyAnswer, VerifyBatch
from qspec.overlap import Pending
from qspec.rpc.batch_stream import BatchStream, PendingAnswer, StreamCall
from qspec.rpc.channel import open_channel
from qspec.rpc.errors import from_rpc_error
from qspec.rpc.verifier_codec import description_from_pb, verify_answer_from_pb, verify_batch_to_pb
from qspec.v1 import verifier_pb2, verifier_pb2_grpc

GIVE_UP_TIMEOUT_S = 5.0


class RemoteVerifier:
    """The verifier at ``address``, over one long-lived stream that is opened again when it was lost.

    Args:
        address: ``unix:PATH`` or ``HOST:PORT``.
        answer_timeout_s: seconds within which each batch must be answered.
        load_timeout_s: seconds within which ``describe`` must be answered; waits for the process and for its model.
    """

    def __init__(self, address: str, *, answer_timeout_s: float = 60.0, load_timeout_s: float = 600.0) -> None:
        self._peer = f"the verifier at {address}"
        self._load_timeout_s = load_timeout_s
        self._channel = open_channel(address, field="verifier")
        self._stub = verifier_pb2_grpc.VerifierServiceStub(self._channel)
        self._stream: BatchStream[verifier_pb2.VerifyRequest, verifier_pb2.VerifyResponse] = BatchStream(
            self._stub.Verify, timeout_s=answer_timeout_s, peer=self._peer
        )

    def describe(self) -> VerifierDescription:
        """See ``Verifier``; returns once the model is loaded."""
        try:
            message = self._stub.Describe(
                verifier_pb2.DescribeRequest(), timeout=self._load_timeout_s, wait_for_ready=True
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._peer) from None
        return description_from_pb(message)

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """See ``Verifier``. After ``WorkerLost`` the same batch may be sent again: what was decided is answered."""
        return self.begin_verify(batch).result()

    def begin_verify(self, batch: VerifyBatch) -> Pending[VerifyAnswer]:
        """See ``qspec.overlap.AwaitingVerifier``."""
        call = self._stream.send(verify_batch_to_pb(batch))
        return PendingAnswer(lambda: self._answer(batch, call), lambda: self._stream.drop(call))

    def give_up_drafts(self, epoch: int, round_number: int) -> None:
        """See ``qspec.overlap.AwaitingVerifier``. Whoever waits for its answer notices a verifier that is gone."""
        request = verifier_pb2.GiveUpDraftsRequest(epoch=epoch, round=round_number)
        with contextlib.suppress(grpc.RpcError):
            self._stub.GiveUpDrafts(request, timeout=GIVE_UP_TIMEOUT_S)

    def _answer(self, batch: VerifyBatch, call: StreamCall[verifier_pb2.VerifyResponse]) -> VerifyAnswer:
        message = self._stream.receive(call)
        try:
            answer = verify_answer_from_pb(message)
            _check(batch, answer)
        except ContractViolation:
            self._stream.drop()
            raise
        return answer

    def close(self) -> None:
        """Close stream and channel; the verifier goes on."""
        self._stream.close()
        self._channel.close()


def _check(batch: VerifyBatch, answer: VerifyAnswer) -> None:
    """Raise ``ContractViolation`` unless ``answer`` is one to ``batch``."""
    if (answer.epoch, answer.round) != (batch.epoch, batch.round):
        raise ContractViolation(f"the verifier answered round {answer.round}, not {batch.round}")
    asked = {(a.slot, a.lease) for a in batch.admissions}
    asked |= {(c.slot, c.lease) for c in batch.prefill_chunks}
    drafted = {(v.slot, v.lease): v.awaited_drafts or len(v.draft_tokens) for v in batch.verifications}
    if sorted((r.slot, r.lease) for r in answer.results) != sorted(asked | drafted.keys()):
        raise ContractViolation("the verifier did not answer once for each slot that it was asked about")
    if any(not r.accepted <= r.drafted <= drafted.get((r.slot, r.lease), 0) for r in answer.results):
        raise ContractViolation("the verifier accepted more drafts than it was given")
