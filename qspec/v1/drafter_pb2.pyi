from qspec.v1 import types_pb2 as _types_pb2
from qspec.v1 import verifier_pb2 as _verifier_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttachRequest(_message.Message):
    __slots__ = ("verifier",)
    VERIFIER_FIELD_NUMBER: _ClassVar[int]
    verifier: _verifier_pb2.DescribeResponse
    def __init__(self, verifier: _Optional[_Union[_verifier_pb2.DescribeResponse, _Mapping]] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("epoch", "method", "kernel", "memory")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    method: str
    kernel: str
    memory: _containers.RepeatedCompositeFieldContainer[_types_pb2.MemoryItem]
    def __init__(self, epoch: _Optional[int] = ..., method: _Optional[str] = ..., kernel: _Optional[str] = ..., memory: _Optional[_Iterable[_Union[_types_pb2.MemoryItem, _Mapping]]] = ...) -> None: ...

class DetachRequest(_message.Message):
    __slots__ = ("epoch",)
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    def __init__(self, epoch: _Optional[int] = ...) -> None: ...

class DetachResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DraftRequest(_message.Message):
    __slots__ = ("epoch", "round", "items", "time_left_s")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TIME_LEFT_S_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    round: int
    items: _containers.RepeatedCompositeFieldContainer[DraftItem]
    time_left_s: float
    def __init__(self, epoch: _Optional[int] = ..., round: _Optional[int] = ..., items: _Optional[_Iterable[_Union[DraftItem, _Mapping]]] = ..., time_left_s: _Optional[float] = ...) -> None: ...

class DraftItem(_message.Message):
    __slots__ = ("slot", "lease", "committed_len", "pending_token", "draft_length", "sampling", "early_stop", "after_round", "end_len")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_LEN_FIELD_NUMBER: _ClassVar[int]
    PENDING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DRAFT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOP_FIELD_NUMBER: _ClassVar[int]
    AFTER_ROUND_FIELD_NUMBER: _ClassVar[int]
    END_LEN_FIELD_NUMBER: _ClassVar[int]
    slot: int
    lease: int
    committed_len: int
    pending_token: int
    draft_length: int
    sampling: _types_pb2.Sampling
    early_stop: EarlyStop
    after_round: int
    end_len: int
    def __init__(self, slot: _Optional[int] = ..., lease: _Optional[int] = ..., committed_len: _Optional[int] = ..., pending_token: _Optional[int] = ..., draft_length: _Optional[int] = ..., sampling: _Optional[_Union[_types_pb2.Sampling, _Mapping]] = ..., early_stop: _Optional[_Union[EarlyStop, _Mapping]] = ..., after_round: _Optional[int] = ..., end_len: _Optional[int] = ...) -> None: ...

class EarlyStop(_message.Message):
    __slots__ = ("least_drawn", "least_fed", "intercept", "slope")
    LEAST_DRAWN_FIELD_NUMBER: _ClassVar[int]
    LEAST_FED_FIELD_NUMBER: _ClassVar[int]
    INTERCEPT_FIELD_NUMBER: _ClassVar[int]
    SLOPE_FIELD_NUMBER: _ClassVar[int]
    least_drawn: float
    least_fed: float
    intercept: float
    slope: float
    def __init__(self, least_drawn: _Optional[float] = ..., least_fed: _Optional[float] = ..., intercept: _Optional[float] = ..., slope: _Optional[float] = ...) -> None: ...

class DraftResponse(_message.Message):
    __slots__ = ("epoch", "round", "results", "timings")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    round: int
    results: _containers.RepeatedCompositeFieldContainer[DraftResult]
    timings: _types_pb2.StageTimings
    def __init__(self, epoch: _Optional[int] = ..., round: _Optional[int] = ..., results: _Optional[_Iterable[_Union[DraftResult, _Mapping]]] = ..., timings: _Optional[_Union[_types_pb2.StageTimings, _Mapping]] = ...) -> None: ...

class DraftResult(_message.Message):
    __slots__ = ("slot", "lease", "outcome", "draft_tokens", "confidences")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCES_FIELD_NUMBER: _ClassVar[int]
    slot: int
    lease: int
    outcome: _types_pb2.SlotOutcome
    draft_tokens: _containers.RepeatedScalarFieldContainer[int]
    confidences: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, slot: _Optional[int] = ..., lease: _Optional[int] = ..., outcome: _Optional[_Union[_types_pb2.SlotOutcome, str]] = ..., draft_tokens: _Optional[_Iterable[int]] = ..., confidences: _Optional[_Iterable[float]] = ...) -> None: ...
