from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AcceptanceRule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACCEPTANCE_RULE_UNSPECIFIED: _ClassVar[AcceptanceRule]
    ACCEPTANCE_RULE_REJECTION: _ClassVar[AcceptanceRule]
    ACCEPTANCE_RULE_COUPLED: _ClassVar[AcceptanceRule]

class SlotOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SLOT_OUTCOME_UNSPECIFIED: _ClassVar[SlotOutcome]
    SLOT_OUTCOME_OK: _ClassVar[SlotOutcome]
    SLOT_OUTCOME_STALE: _ClassVar[SlotOutcome]
    SLOT_OUTCOME_NO_BLOCKS: _ClassVar[SlotOutcome]
    SLOT_OUTCOME_DEAD_END: _ClassVar[SlotOutcome]
    SLOT_OUTCOME_LATE: _ClassVar[SlotOutcome]

class ArenaBackend(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARENA_BACKEND_UNSPECIFIED: _ClassVar[ArenaBackend]
    ARENA_BACKEND_HOST_SHM: _ClassVar[ArenaBackend]
    ARENA_BACKEND_CUDA_IPC: _ClassVar[ArenaBackend]

class RegionWriter(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REGION_WRITER_UNSPECIFIED: _ClassVar[RegionWriter]
    REGION_WRITER_VERIFIER: _ClassVar[RegionWriter]
    REGION_WRITER_DRAFTER: _ClassVar[RegionWriter]
ACCEPTANCE_RULE_UNSPECIFIED: AcceptanceRule
ACCEPTANCE_RULE_REJECTION: AcceptanceRule
ACCEPTANCE_RULE_COUPLED: AcceptanceRule
SLOT_OUTCOME_UNSPECIFIED: SlotOutcome
SLOT_OUTCOME_OK: SlotOutcome
SLOT_OUTCOME_STALE: SlotOutcome
SLOT_OUTCOME_NO_BLOCKS: SlotOutcome
SLOT_OUTCOME_DEAD_END: SlotOutcome
SLOT_OUTCOME_LATE: SlotOutcome
ARENA_BACKEND_UNSPECIFIED: ArenaBackend
ARENA_BACKEND_HOST_SHM: ArenaBackend
ARENA_BACKEND_CUDA_IPC: ArenaBackend
REGION_WRITER_UNSPECIFIED: RegionWriter
REGION_WRITER_VERIFIER: RegionWriter
REGION_WRITER_DRAFTER: RegionWriter

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "seed", "choice", "rule", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "min_tokens", "ending_token_ids", "logprobs", "prompt_logprobs")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    TYPICAL_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ENDING_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    choice: int
    rule: AcceptanceRule
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.ScalarMap[int, float]
    min_tokens: int
    ending_token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: int
    prompt_logprobs: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., choice: _Optional[int] = ..., rule: _Optional[_Union[AcceptanceRule, str]] = ..., min_p: _Optional[float] = ..., typical_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., min_tokens: _Optional[int] = ..., ending_token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("logprob", "top_token_ids", "top_logprobs")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprob: _Optional[float] = ..., top_token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class StageTimings(_message.Message):
    __slots__ = ("prepare_ns", "forward_ns", "sample_ns", "total_ns")
    PREPARE_NS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_NS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_NS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_NS_FIELD_NUMBER: _ClassVar[int]
    prepare_ns: int
    forward_ns: int
    sample_ns: int
    total_ns: int
    def __init__(self, prepare_ns: _Optional[int] = ..., forward_ns: _Optional[int] = ..., sample_ns: _Optional[int] = ..., total_ns: _Optional[int] = ...) -> None: ...

class ArenaRegion(_message.Message):
    __slots__ = ("name", "dtype", "shape", "offset", "writer", "file")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    offset: int
    writer: RegionWriter
    file: int
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., offset: _Optional[int] = ..., writer: _Optional[_Union[RegionWriter, str]] = ..., file: _Optional[int] = ...) -> None: ...

class ArenaDescriptor(_message.Message):
    __slots__ = ("backend", "device_uuid", "handle", "reference", "size", "epoch", "fingerprint", "regions", "file_sizes")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_UUID_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    FILE_SIZES_FIELD_NUMBER: _ClassVar[int]
    backend: ArenaBackend
    device_uuid: str
    handle: bytes
    reference: str
    size: int
    epoch: int
    fingerprint: str
    regions: _containers.RepeatedCompositeFieldContainer[ArenaRegion]
    file_sizes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, backend: _Optional[_Union[ArenaBackend, str]] = ..., device_uuid: _Optional[str] = ..., handle: _Optional[bytes] = ..., reference: _Optional[str] = ..., size: _Optional[int] = ..., epoch: _Optional[int] = ..., fingerprint: _Optional[str] = ..., regions: _Optional[_Iterable[_Union[ArenaRegion, _Mapping]]] = ..., file_sizes: _Optional[_Iterable[int]] = ...) -> None: ...

class MemoryItem(_message.Message):
    __slots__ = ("name", "bytes", "shared", "mapped_file")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    MAPPED_FILE_FIELD_NUMBER: _ClassVar[int]
    name: str
    bytes: int
    shared: bool
    mapped_file: bool
    def __init__(self, name: _Optional[str] = ..., bytes: _Optional[int] = ..., shared: bool = ..., mapped_file: bool = ...) -> None: ...
