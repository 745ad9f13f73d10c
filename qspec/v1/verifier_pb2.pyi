from qspec.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("model", "method", "row_invariant", "vocab_size", "vocab_fingerprint", "max_model_len", "max_slots", "max_draft_length", "max_batch_rows", "block_size", "num_blocks", "arena", "memory", "kernel", "draft_quantization", "verify_quantization", "auto_reason", "prefix_cache", "awaits_drafts", "asked_ahead")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ROW_INVARIANT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_SLOTS_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAFT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ARENA_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    DRAFT_QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    VERIFY_QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    AUTO_REASON_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_FIELD_NUMBER: _ClassVar[int]
    AWAITS_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    ASKED_AHEAD_FIELD_NUMBER: _ClassVar[int]
    model: str
    method: str
    row_invariant: bool
    vocab_size: int
    vocab_fingerprint: str
    max_model_len: int
    max_slots: int
    max_draft_length: int
    max_batch_rows: int
    block_size: int
    num_blocks: int
    arena: _types_pb2.ArenaDescriptor
    memory: _containers.RepeatedCompositeFieldContainer[_types_pb2.MemoryItem]
    kernel: str
    draft_quantization: str
    verify_quantization: str
    auto_reason: str
    prefix_cache: bool
    awaits_drafts: bool
    asked_ahead: bool
    def __init__(self, model: _Optional[str] = ..., method: _Optional[str] = ..., row_invariant: bool = ..., vocab_size: _Optional[int] = ..., vocab_fingerprint: _Optional[str] = ..., max_model_len: _Optional[int] = ..., max_slots: _Optional[int] = ..., max_draft_length: _Optional[int] = ..., max_batch_rows: _Optional[int] = ..., block_size: _Optional[int] = ..., num_blocks: _Optional[int] = ..., arena: _Optional[_Union[_types_pb2.ArenaDescriptor, _Mapping]] = ..., memory: _Optional[_Iterable[_Union[_types_pb2.MemoryItem, _Mapping]]] = ..., kernel: _Optional[str] = ..., draft_quantization: _Optional[str] = ..., verify_quantization: _Optional[str] = ..., auto_reason: _Optional[str] = ..., prefix_cache: bool = ..., awaits_drafts: bool = ..., asked_ahead: bool = ...) -> None: ...

class GiveUpDraftsRequest(_message.Message):
    __slots__ = ("epoch", "round")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    round: int
    def __init__(self, epoch: _Optional[int] = ..., round: _Optional[int] = ...) -> None: ...

class GiveUpDraftsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("epoch", "round", "releases", "admissions", "prefill_chunks", "verifications", "time_left_s")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    ADMISSIONS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    VERIFICATIONS_FIELD_NUMBER: _ClassVar[int]
    TIME_LEFT_S_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    round: int
    releases: _containers.RepeatedCompositeFieldContainer[Release]
    admissions: _containers.RepeatedCompositeFieldContainer[Admission]
    prefill_chunks: _containers.RepeatedCompositeFieldContainer[PrefillChunk]
    verifications: _containers.RepeatedCompositeFieldContainer[Verification]
    time_left_s: float
    def __init__(self, epoch: _Optional[int] = ..., round: _Optional[int] = ..., releases: _Optional[_Iterable[_Union[Release, _Mapping]]] = ..., admissions: _Optional[_Iterable[_Union[Admission, _Mapping]]] = ..., prefill_chunks: _Optional[_Iterable[_Union[PrefillChunk, _Mapping]]] = ..., verifications: _Optional[_Iterable[_Union[Verification, _Mapping]]] = ..., time_left_s: _Optional[float] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("slot", "lease")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    slot: int
    lease: int
    def __init__(self, slot: _Optional[int] = ..., lease: _Optional[int] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("slot", "lease", "sampling", "prompt_len", "json_schema", "regex", "grammar", "token_ids", "cache_salt")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LEN_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    slot: int
    lease: int
    sampling: _types_pb2.Sampling
    prompt_len: int
    json_schema: str
    regex: str
    grammar: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    cache_salt: str
    def __init__(self, slot: _Optional[int] = ..., lease: _Optional[int] = ..., sampling: _Optional[_Union[_types_pb2.Sampling, _Mapping]] = ..., prompt_len: _Optional[int] = ..., json_schema: _Optional[str] = ..., regex: _Optional[str] = ..., grammar: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., cache_salt: _Optional[str] = ...) -> None: ...

class PrefillChunk(_message.Message):
    __slots__ = ("slot", "lease", "start", "token_ids", "next_token")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    slot: int
    lease: int
    start: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    next_token: int
    def __init__(self, slot: _Optional[int] = ..., lease: _Optional[int] = ..., start: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., next_token: _Optional[int] = ...) -> None: ...

class Verification(_message.Message):
    __slots__ = ("slot", "lease", "committed_len", "pending_token", "draft_tokens", "awaited_drafts", "after_round", "end_len")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_LEN_FIELD_NUMBER: _ClassVar[int]
    PENDING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AWAITED_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    AFTER_ROUND_FIELD_NUMBER: _ClassVar[int]
    END_LEN_FIELD_NUMBER: _ClassVar[int]
    slot: int
    lease: int
    committed_len: int
    pending_token: int
    draft_tokens: _containers.RepeatedScalarFieldContainer[int]
    awaited_drafts: int
    after_round: int
    end_len: int
    def __init__(self, slot: _Optional[int] = ..., lease: _Optional[int] = ..., committed_len: _Optional[int] = ..., pending_token: _Optional[int] = ..., draft_tokens: _Optional[_Iterable[int]] = ..., awaited_drafts: _Optional[int] = ..., after_round: _Optional[int] = ..., end_len: _Optional[int] = ...) -> None: ...

class VerifyResponse(_message.Message):
    __slots__ = ("epoch", "round", "results", "free_blocks", "timings", "prefill_rows", "waited_ns", "idle_ns")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_ROWS_FIELD_NUMBER: _ClassVar[int]
    WAITED_NS_FIELD_NUMBER: _ClassVar[int]
    IDLE_NS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    round: int
    results: _containers.RepeatedCompositeFieldContainer[VerifyResult]
    free_blocks: int
    timings: _types_pb2.StageTimings
    prefill_rows: int
    waited_ns: int
    idle_ns: int
    def __init__(self, epoch: _Optional[int] = ..., round: _Optional[int] = ..., results: _Optional[_Iterable[_Union[VerifyResult, _Mapping]]] = ..., free_blocks: _Optional[int] = ..., timings: _Optional[_Union[_types_pb2.StageTimings, _Mapping]] = ..., prefill_rows: _Optional[int] = ..., waited_ns: _Optional[int] = ..., idle_ns: _Optional[int] = ...) -> None: ...

class VerifyResult(_message.Message):
    __slots__ = ("slot", "lease", "outcome", "accepted", "token_ids", "cached_len", "reserved_len", "logprobs", "prompt_logprobs", "reused_len", "drafted")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CACHED_LEN_FIELD_NUMBER: _ClassVar[int]
    RESERVED_LEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    REUSED_LEN_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    slot: int
    lease: int
    outcome: _types_pb2.SlotOutcome
    accepted: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    cached_len: int
    reserved_len: int
    logprobs: _containers.RepeatedCompositeFieldContainer[_types_pb2.TokenLogprobs]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[_types_pb2.TokenLogprobs]
    reused_len: int
    drafted: int
    def __init__(self, slot: _Optional[int] = ..., lease: _Optional[int] = ..., outcome: _Optional[_Union[_types_pb2.SlotOutcome, str]] = ..., accepted: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., cached_len: _Optional[int] = ..., reserved_len: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[_types_pb2.TokenLogprobs, _Mapping]]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[_types_pb2.TokenLogprobs, _Mapping]]] = ..., reused_len: _Optional[int] = ..., drafted: _Optional[int] = ...) -> None: ...
