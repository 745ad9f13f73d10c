// Streams the answer to one prompt. Ctrl-C cancels the request on the server.
import { once } from "node:events";

import { FinishReason, QspecClient, QspecError, StatusCode, type GenerateResponse } from "../src/index.js";
import { help, InputError, parse, type Options } from "./options.js";

const EXIT_FAILURE = 1;
const EXIT_INPUT = 2;
const EXIT_SIGNAL = 130;

async function main(): Promise<number> {
  let address = "";
  const interrupt = new AbortController();
  try {
    const options = parse(process.argv.slice(2));
    if (options === undefined) {
      console.log(help());
      return 0;
    }
    address = options.address;
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      process.once(signal, () => interrupt.abort());
    }
    await run(options, interrupt.signal);
    return 0;
  } catch (error) {
    if (interrupt.signal.aborted) {
      console.error("interrupted");
      return EXIT_SIGNAL;
    }
    console.error(describe(error, address));
    const input = error instanceof InputError || (error instanceof QspecError && error.code === StatusCode.INVALID_ARGUMENT);
    return input ? EXIT_INPUT : EXIT_FAILURE;
  }
}

/** Prints the text as it comes, and figures at the end. */
async function run(options: Options, interrupted: AbortSignal): Promise<void> {
  const client = connect(options);
  try {
    const last = await stream(client, options, interrupted);
    const reason = FinishReason[last.finishReason] ?? String(last.finishReason);
    const rate = (last.usage?.tokensPerSecond ?? 0).toFixed(1);
    console.error(`${last.usage?.completionTokens ?? 0} tokens, ${rate} tokens/s, ended by ` +
      reason.toLowerCase().replaceAll("_", " "));
  } finally {
    client.close();
  }
}

function connect({ address, connection }: Options): QspecClient {
  try {
    return new QspecClient(address, connection);
  } catch (error) {
    throw new InputError((error as Error).message); // an address or a certificate that cannot be read
  }
}

/** Prints all pieces and returns the last one. */
async function stream(client: QspecClient, options: Options, interrupted: AbortSignal): Promise<GenerateResponse> {
  const closed = new AbortController(); // nobody reads standard output any more
  let failure: Error | undefined;
  process.stdout.on("error", (error) => {
    failure = error;
    closed.abort();
  });
  const call = {
    signal: AbortSignal.any([interrupted, closed.signal]),
    ...(options.timeoutMs === undefined ? {} : { timeoutMs: options.timeoutMs }),
  };
  let last: GenerateResponse | undefined;
  try {
    for await (const piece of client.generate(options.request, call)) {
      last = piece;
      if (!process.stdout.write(piece.text)) {
        await once(process.stdout, "drain", { signal: call.signal });
      }
    }
  } catch (error) {
    throw failure ?? error;
  } finally {
    if (last !== undefined && failure === undefined) {
      process.stdout.write("\n"); // what comes next starts on a line of its own
    }
  }
  return last!; // a text without a last piece is an error
}

/** The one line that a failed run ends with. */
function describe(error: unknown, address: string): string {
  if (error instanceof QspecError && error.code === StatusCode.UNAVAILABLE && error.reason === undefined) {
    return `error: ${address} cannot be reached, or has gone away (${error.message})`;
  }
  return `error: ${error instanceof Error ? error.message : String(error)}`;
}

process.exitCode = await main();
