import {
  create,
  fromBinary,
  toBinary,
  type DescMessage,
  type DescMethod,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import { Client, type CallOptions as GrpcCallOptions, type Metadata, type ServiceError } from "@grpc/grpc-js";

import { callMetadata, channelCredentials, checkConnection, type ConnectionOptions } from "./connection.js";
import { QspecError, StatusCode } from "./error.js";
import {
  FinishReason,
  GenerateRequestSchema,
  GenerationService,
  TokenizeRequestSchema,
  type GenerateResponse,
  type GetServerInfoResponse,
} from "./generated/qspec/v1/generation_pb.js";

/** The fields of a request; what is left out takes the server's default. */
export type GenerateInput = MessageInitShape<typeof GenerateRequestSchema>;
export type TokenizeInput = MessageInitShape<typeof TokenizeRequestSchema>;

export interface CallOptions {
  /** Cancels the call on the server. */
  signal?: AbortSignal;
  /** The call's deadline, from now. */
  timeoutMs?: number;
}

/** A connection to one server, which the first call makes. */
export class QspecClient {
  readonly #client: Client;
  readonly #metadata: Metadata;

  /** `address` is `HOST:PORT` or `unix:PATH`; throws `TypeError` for another, and for options that do not fit. */
  constructor(address: string, options: ConnectionOptions = {}) {
    checkConnection(address, options);
    this.#metadata = callMetadata(options);
    this.#client = new Client(address, channelCredentials(options));
  }

  /**
   * Generates, and yields the pieces of the text as they are decided. Leaving the loop cancels on the server.
   * Throws `QspecError`.
   */
  async *generate(input: GenerateInput, options: CallOptions = {}): AsyncGenerator<GenerateResponse, void, undefined> {
    const request = create(GenerateRequestSchema, input);
    const { path, write, read } = wire(GenerationService.method.generate);
    const call = this.#client.makeServerStreamRequest(
      path, write, read, request, this.#metadata.clone(), grpcOptions(options));
    call.on("error", () => {}); // the loop throws it; one that comes after the loop tells nothing new
    const cancel = (): void => call.cancel();
    options.signal?.addEventListener("abort", cancel, { once: true });
    if (options.signal?.aborted) {
      cancel();
    }
    let unfinished = request.n ?? 1;
    try {
      for await (const piece of call as AsyncIterable<GenerateResponse>) {
        if (piece.finishReason !== FinishReason.UNSPECIFIED) {
          unfinished--;
        }
        yield piece;
      }
    } catch (error) {
      throw isServiceError(error) ? QspecError.from(error) : error;
    } finally {
      options.signal?.removeEventListener("abort", cancel);
      cancel();
    }
    if (unfinished > 0) {
      throw new QspecError(StatusCode.DATA_LOSS, "the server ended the text without a reason");
    }
  }

  /** What runs on the server; answers while the model is being loaded, too. */
  async serverInfo(options: CallOptions = {}): Promise<GetServerInfoResponse> {
    return this.#unary(GenerationService.method.getServerInfo, {}, options);
  }

  /** The tokens of a text or a conversation, as `generate` would see them. */
  async tokenize(input: TokenizeInput, options: CallOptions = {}): Promise<number[]> {
    return (await this.#unary(GenerationService.method.tokenize, input, options)).tokenIds;
  }

  /** Ends the connection, and with it all calls. */
  close(): void {
    this.#client.close();
  }

  #unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethod & { input: I; output: O }, input: MessageInitShape<I>, { signal, ...options }: CallOptions,
  ): Promise<MessageShape<O>> {
    const { path, write, read } = wire(method);
    return new Promise((resolve, reject) => {
      const call = this.#client.makeUnaryRequest(
        path, write, read, create(method.input, input), this.#metadata.clone(), grpcOptions(options),
        (error, response) => {
          signal?.removeEventListener("abort", cancel);
          error === null ? resolve(response!) : reject(QspecError.from(error));
        });
      const cancel = (): void => call.cancel();
      signal?.addEventListener("abort", cancel, { once: true });
      if (signal?.aborted) {
        cancel();
      }
    });
  }
}

/** What gRPC has to know of a method. */
function wire<I extends DescMessage, O extends DescMessage>(method: DescMethod & { input: I; output: O }) {
  return {
    path: `/${method.parent.typeName}/${method.name}`,
    write: (message: MessageShape<I>): Buffer => Buffer.from(toBinary(method.input, message)),
    read: (bytes: Buffer): MessageShape<O> => fromBinary(method.output, bytes),
  };
}

function grpcOptions({ timeoutMs }: CallOptions): GrpcCallOptions {
  return timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs };
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "metadata" in error;
}
