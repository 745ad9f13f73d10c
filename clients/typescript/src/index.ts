/**
 * A client of a QSPEC server: streams generated text, and turns failed calls into errors that name the offending fields
 * and say when to try again.
 */
export { QspecClient, type CallOptions, type GenerateInput, type TokenizeInput } from "./client.js";
export { QspecError, StatusCode, type FieldViolation } from "./error.js";
export type { ConnectionOptions, TlsOptions } from "./connection.js";
export * from "./generated/qspec/v1/generation_pb.js";
export * from "./generated/qspec/v1/types_pb.js";
