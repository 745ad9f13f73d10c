import { fromBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { status as StatusCode, type ServiceError } from "@grpc/grpc-js";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./generated/google/rpc/error_details_pb.js";
import { StatusSchema } from "./generated/google/rpc/status_pb.js";

export { StatusCode };

/** What is wrong with one field of a request. */
export interface FieldViolation {
  field: string;
  description: string;
}

interface Details {
  violations: FieldViolation[];
  reason?: string;
  retryAfterMs?: number;
}

/** A failed call: its status, with the details that the server sent. The message is one line. */
export class QspecError extends Error {
  override readonly name = "QspecError";
  readonly code: StatusCode;
  /** What the server says, for people. */
  readonly details: string;
  /** Every offending field of the request (with INVALID_ARGUMENT). */
  readonly violations: readonly FieldViolation[];
  /** Tells errors of one code apart, for example QUEUE_FULL from SLOW_READER. */
  readonly reason: string | undefined;
  /** When the same request may succeed, in milliseconds; undefined where the server did not say. */
  readonly retryAfterMs: number | undefined;

  constructor(code: StatusCode, details: string, found: Details = { violations: [] }, cause?: unknown) {
    const fields = found.violations.map(({ field, description }) => `${field}: ${description}`);
    const text = fields.length > 0 ? fields.join("; ") : details.split("\n", 1)[0];
    const again = found.retryAfterMs === undefined ? "" : `; try again in ${(found.retryAfterMs / 1000).toFixed(1)} s`;
    super(`${StatusCode[code]}: ${text}${again}`, { cause });
    this.code = code;
    this.details = details;
    this.violations = found.violations;
    this.reason = found.reason;
    this.retryAfterMs = found.retryAfterMs;
  }

  /** The error that a failed call of gRPC stands for. */
  static from(error: ServiceError): QspecError {
    return new QspecError(error.code, error.details, readDetails(error), error);
  }
}

function readDetails(error: ServiceError): Details {
  const found: Details = { violations: [] };
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!(bytes instanceof Uint8Array)) {
    return found;
  }
  for (const detail of fromBinary(StatusSchema, bytes).details) {
    const badRequest = anyUnpack(detail, BadRequestSchema);
    for (const { field, description } of badRequest?.fieldViolations ?? []) {
      found.violations.push({ field, description });
    }
    const info = anyUnpack(detail, ErrorInfoSchema);
    if (info !== undefined) {
      found.reason = info.reason;
    }
    const delay = anyUnpack(detail, RetryInfoSchema)?.retryDelay;
    if (delay !== undefined) {
      found.retryAfterMs = Number(delay.seconds) * 1000 + delay.nanos / 1e6;
    }
  }
  return found;
}
